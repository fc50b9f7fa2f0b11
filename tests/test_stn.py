import math
import re
import warnings
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.feature_extraction import create_feature_extractor

from stn import SpatialTransformer, STNClassifier, inside, scale, spread

EYE = torch.tensor([[1.0, 0, 0], [0, 1, 0]])


def maps(n, spread=1.0):
    """Random affine maps, many of them partly and some wholly outside the image."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(n, 2, 3, generator=generator) * spread
    theta[0, :, 2] = 9  # wholly outside
    return theta


def turn(degrees):
    """A rotation about the image's centre, in `grid_sample`'s coordinates, where both sides are 2."""
    angle = math.radians(degrees)
    return torch.tensor([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]])


def bilinear(image, theta, row, column, out_size, fill):
    """One sample in float64, as the definition has it: pixel centres at half-integers, `fill` everywhere outside."""
    (height, width), (out_height, out_width) = image.shape, out_size
    x, y = (2 * column + 1) / out_width - 1, (2 * row + 1) / out_height - 1
    (a, b, c), (d, e, f) = theta.double().tolist()
    u, v = ((a * x + b * y + c + 1) * width - 1) / 2, ((d * x + e * y + f + 1) * height - 1) / 2
    total = 0.0
    for i in (math.floor(v), math.floor(v) + 1):
        for j in (math.floor(u), math.floor(u) + 1):
            value = image[i][j].item() if 0 <= i < height and 0 <= j < width else fill
            total += value * (1 - abs(v - i)) * (1 - abs(u - j))
    return total


def assert_bilinear(images, theta, out_size, fill):
    """Compares every sample with the formula and returns how many are nothing but fill."""
    sampled = SpatialTransformer(tuple(images.shape[2:]), out_size, fill, images.shape[1]).sample(images, theta)
    assert sampled.shape == (*images.shape[:2], *out_size)
    outside = 0
    for (n, channel, row, column), value in np.ndenumerate(sampled.numpy()):
        expected = bilinear(images[n, channel], theta[n], row, column, out_size, fill)
        assert value == pytest.approx(expected, abs=1e-4)
        outside += expected == fill
    return outside


def moving(**options):
    """A transformer whose maps depend on the images, unlike a new one's."""
    torch.manual_seed(0)
    transformer = SpatialTransformer(**options)
    torch.nn.init.normal_(transformer.fc_loc[-1].weight, std=0.1)
    return transformer.eval()


def test_the_transformer_starts_as_the_identity():
    images = torch.rand(3, 1, 60, 60)
    transformer = SpatialTransformer(60)
    assert torch.equal(transformer.theta(images), EYE.expand(3, 2, 3))
    assert torch.allclose(SpatialTransformer(28)(images[..., :28, :28]), images[..., :28, :28], atol=1e-5)


@pytest.mark.parametrize("fill", [0.0, -0.4242])
def test_a_sample_is_the_bilinear_formula_inside_on_the_border_and_outside(fill):
    images = torch.rand(8, 1, 20, 20, generator=torch.Generator().manual_seed(1)) + 0.5
    theta = maps(8)
    theta[1] = EYE  # inside
    theta[2] = 1.1 * EYE  # its outermost points lie in the rim of half a pixel
    outside = assert_bilinear(images, theta, (12, 12), fill)
    assert 144 < outside < 8 * 144  # more than the one map that was put there


@pytest.mark.parametrize("fill", [0.0, -0.4242])
def test_an_image_that_is_not_square_is_sampled_as_the_formula_says(fill):
    images = torch.rand(4, 3, 18, 30, generator=torch.Generator().manual_seed(2)) + 0.5
    shift = torch.tensor([[1.0, 0, 0.5], [0, 1, -0.25]])  # 7.5 pixels to the right, 2.25 up
    assert_bilinear(images, torch.stack([EYE, shift, turn(30), maps(2)[1]]), (9, 14), fill)
    transformer = SpatialTransformer((18, 30), (18, 30), channels=3)
    assert torch.allclose(transformer.sample(images, EYE.expand(4, 2, 3)), images, atol=1e-5)
    right = torch.tensor([[1.0, 0, 2 * 3 / 30], [0, 1, 2 * 2 / 18]]).expand(4, 2, 3)  # by 3 pixels, and 2 down
    moved = transformer.sample(images, right)
    assert torch.allclose(moved[:, :, :-2, :-3], images[:, :, 2:, 3:], atol=1e-5)
    assert torch.allclose(transformer.sample(images, turn(180).expand(4, 2, 3)), images.flip(2, 3), atol=1e-4)


def test_sizes_are_a_side_or_height_and_width_and_images_have_any_channels():
    rgb = torch.rand(2, 3, 40, 64)
    transformer = moving(in_size=(40, 64), out_size=(20, 32), channels=3)
    assert transformer.theta(rgb).shape == (2, 2, 3) and transformer(rgb).shape == (2, 3, 20, 32)
    assert SpatialTransformer((40, 64), 16, channels=3)(rgb).shape == (2, 3, 16, 16)
    torch.manual_seed(0)
    side, grey = SpatialTransformer(28, 14), torch.rand(2, 1, 28, 28)
    pair = SpatialTransformer((28, 28), (14, 14))
    pair.load_state_dict(side.state_dict())
    assert torch.equal(side(grey), pair(grey))
    one_map = transformer.theta(rgb)  # all channels are sampled with one map
    for channel in range(3):
        alone = SpatialTransformer((40, 64), (20, 32)).sample(rgb[:, channel : channel + 1], one_map)
        assert torch.allclose(transformer(rgb)[:, channel : channel + 1], alone, atol=1e-6)


def test_filling_with_black_is_sampling_the_raw_image_and_normalizing_afterwards():
    mean, std = 0.1307, 0.3081
    raw, theta = torch.rand(50, 1, 60, 60), maps(50)
    black = SpatialTransformer(60, fill=-mean / std).sample((raw - mean) / std, theta)
    afterwards = (SpatialTransformer(60).sample(raw, theta) - mean) / std
    assert torch.allclose(black, afterwards, atol=1e-5)
    frame = SpatialTransformer(60).sample((raw - mean) / std, theta)
    assert (frame - afterwards).abs().max() > 0.4  # what the fill is for


def test_scale_is_the_side_of_the_sampled_region():
    rotation = turn(30) + torch.tensor([[0, 0, 0.3], [0, 0, -0.1]])
    mirror = torch.tensor([[-1.0, 0, 0], [0, 1, 0]])
    stretch = torch.tensor([[2.0, 0, 0], [0, 0.5, 0]])
    flat = torch.tensor([[1.0, 1, 0], [1, 1, 0]])
    for theta, side in ((rotation, 1), (0.7 * rotation, 0.7), (mirror, 1), (stretch, 1), (flat, 0)):
        assert scale(theta[None]).item() == pytest.approx(side, abs=1e-6)
    assert scale(torch.stack([rotation, 0.5 * rotation])).item() == pytest.approx(0.75)


def test_the_gradient_of_scale_is_that_of_its_formula_and_finite_where_the_map_is_flat():
    theta = maps(6)
    theta[1] = torch.tensor([[1.0, 1, 0], [1, 1, 0]])
    theta[2] = 0
    theta.requires_grad_()
    scale(theta).backward()
    for n, ((a, b, _), (c, d, _)) in enumerate(theta.tolist()):
        det = a * d - b * c
        # d sqrt(|det|) = sign(det) / (2 sqrt(|det|)) d det, over the number of maps
        factor = 0 if n in (1, 2) else math.copysign(1, det) / (2 * math.sqrt(abs(det))) / 6
        wanted = torch.tensor([[d, -c, 0], [-b, a, 0]]) * factor
        assert torch.allclose(theta.grad[n], wanted, rtol=1e-4, atol=1e-6)


def test_inside_is_the_fraction_of_grid_points_within_the_image():
    right = torch.tensor([[1.0, 0, 1], [0, 1, 0]])  # by half the image
    away = torch.tensor([[1.0, 0, 2], [0, 1, 0]])
    for theta, fraction in ((EYE, 1), (0.5 * EYE, 1), (2 * EYE, 1 / 4), (right, 1 / 2), (away, 0)):
        assert inside(theta[None]).item() == fraction
    assert inside(torch.stack([EYE, right, away, away])).item() == 0.375
    assert inside(2 * EYE[None], out_size=4).item() == 1 / 4
    wide = torch.tensor([[2.0, 0, 0], [0, 1.4, 0]])[None]
    assert inside(wide, out_size=(3, 8)).item() == 4 / 8  # all rows: the outer ones are at +-2/3
    assert inside(wide, out_size=(8, 3)).item() == 6 / 8 * 1 / 3


def test_spread_is_how_far_the_centres_differ_between_images():
    theta = maps(9)
    theta[:, :, 2] = torch.tensor([[0.5, 0.0], [-0.5, 0.0], [0.5, 0.0]]).repeat(3, 1)
    variance = (6 * 0.5**2 + 3 * 0.5**2) / 9 - (0.5 / 3) ** 2  # of t_x; t_y has none
    assert spread(theta).item() == pytest.approx(math.sqrt(variance / 2))
    theta[:, :, 2] = theta[:, :, 2].flip(1)
    assert spread(theta).item() == pytest.approx(math.sqrt(variance / 2))
    theta[:, :, 2] = torch.tensor([0.4, -0.2]) + torch.tensor([[0.3], [0], [-0.3]]).repeat(3, 1)
    assert spread(theta).item() == pytest.approx(0.3 * math.sqrt(2 / 3), rel=1e-5)
    assert spread(maps(1).expand(50, 2, 3)).item() == pytest.approx(0, abs=1e-6)  # one map for all
    assert spread(maps(1)).item() == 0  # and no NaN


def test_digits_at_random_places_have_the_spread_that_its_docstring_names():
    # a digit's centre is randint(60 - 28) + 14 pixels from the edge, the canvas has 60 of them and a side of 2
    centres = (torch.arange(32) + 14) / 60 * 2 - 1
    places = torch.cartesian_prod(centres, centres)
    theta = torch.cat([(28 / 60 * EYE[:, :2]).expand(1024, 2, 2), places[:, :, None]], dim=2)
    assert 0.305 < spread(theta).item() < 0.315


def test_the_network_is_that_of_the_published_weights():
    shapes = {name: tuple(value.shape) for name, value in STNClassifier().state_dict().items()}
    assert shapes == {
        "stn.localization.0.weight": (8, 1, 7, 7),
        "stn.localization.0.bias": (8,),
        "stn.localization.3.weight": (10, 8, 5, 5),
        "stn.localization.3.bias": (10,),
        "stn.fc_loc.0.weight": (32, 1210),
        "stn.fc_loc.0.bias": (32,),
        "stn.fc_loc.2.weight": (6, 32),
        "stn.fc_loc.2.bias": (6,),
        "classifier.0.weight": (10, 1, 5, 5),
        "classifier.0.bias": (10,),
        "classifier.3.weight": (20, 10, 5, 5),
        "classifier.3.bias": (20,),
        "classifier.8.weight": (50, 320),
        "classifier.8.bias": (50,),
        "classifier.11.weight": (10, 50),
        "classifier.11.bias": (10,),
    }
    assert sum(parameter.numel() for parameter in STNClassifier().parameters()) == 63_200
    assert STNClassifier(in_size=28).stn.fc_loc[0].in_features == 90


def test_the_network_is_these_functions_one_after_the_other():
    torch.manual_seed(0)
    model, images = STNClassifier(fill=-0.4), torch.rand(5, 1, 60, 60)
    torch.nn.init.normal_(model.stn.fc_loc[-1].weight, std=0.05)
    model.eval()
    w = model.state_dict()

    def conv(x, name):
        return F.relu(F.max_pool2d(F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"]), 2))

    x = conv(conv(images, "stn.localization.0"), "stn.localization.3").reshape(5, 1210)
    x = F.relu(x @ w["stn.fc_loc.0.weight"].T + w["stn.fc_loc.0.bias"])
    theta = (x @ w["stn.fc_loc.2.weight"].T + w["stn.fc_loc.2.bias"]).reshape(5, 2, 3)
    assert torch.allclose(model.stn.theta(images), theta, atol=1e-6)
    x = model.stn.sample(images, theta)
    assert x.shape == (5, 1, 28, 28)
    x = conv(conv(x, "classifier.0"), "classifier.3").reshape(5, 320)
    x = F.relu(x @ w["classifier.8.weight"].T + w["classifier.8.bias"])
    assert torch.allclose(model(images), x @ w["classifier.11.weight"].T + w["classifier.11.bias"], atol=1e-5)


def test_the_map_of_another_transformer_is_the_one_that_classifies():
    class Half(SpatialTransformer):
        def theta(self, images):
            return 0.5 * EYE.expand(images.size(0), 2, 3)

    torch.manual_seed(0)
    model, images = STNClassifier(transformer=Half, fill=-0.4).eval(), torch.rand(4, 1, 60, 60)
    assert type(model.stn) is Half and model.stn.fill == -0.4
    assert model.state_dict().keys() == STNClassifier().state_dict().keys()
    corner = torch.zeros_like(images)
    corner[..., 15:45, 15:45] = images[..., 15:45, 15:45]  # it sees no more than the half in the middle
    assert torch.equal(model(images), model(corner)) and not torch.allclose(model(images), model(images.flip(3)))


def test_sizes_and_shapes_are_refused_with_what_was_given_and_what_is_wanted():
    for size, shown in ((17, "17"), ((60, 17), r"\(60, 17\)")):
        with pytest.raises(ValueError, match=f"in_size is {shown}, .* at least 18 x 18"):
            SpatialTransformer(size)
    assert SpatialTransformer(18)(torch.zeros(1, 1, 18, 18)).shape == (1, 1, 28, 28)
    for size in ((60,), (60, 60, 1), (60, 60.0), 0, -3, (28, 0), "60", 60.0, None):
        for sizes in ({"in_size": size}, {"in_size": 60, "out_size": size}):
            with pytest.raises(ValueError, match="a size is .*, but should be a side in pixels or .height, width."):
                SpatialTransformer(**sizes)

    model, rgb = STNClassifier(), SpatialTransformer((40, 64), channels=3)
    for module, shape, wanted in (
        (model, (2, 1, 28, 28), "N, 1, 60, 60"),
        (model, (2, 3, 60, 60), "N, 1, 60, 60"),
        (model, (1, 60, 60), "N, 1, 60, 60"),
        (rgb, (2, 3, 64, 40), "N, 3, 40, 64"),
        (rgb, (2, 40, 64, 3), "N, 3, 40, 64"),
    ):
        with pytest.raises(ValueError) as error:
            module(torch.zeros(shape))
        assert str(error.value) == f"images are {list(shape)}, but should be [{wanted}]"


@pytest.mark.parametrize("how", ["export", "trace", "script"])
@pytest.mark.parametrize("size", [{"in_size": 60, "fill": -0.4}, {"in_size": (40, 64), "out_size": 20, "channels": 3}])
def test_what_is_exported_traced_or_scripted_gives_the_same_values_for_any_batch(how, size):
    transformer = moving(**size)
    shape = (transformer.channels, *transformer.in_size)
    example, images = torch.rand(2, *shape), torch.rand(7, *shape)
    if how == "export":
        batch = {0: torch.export.Dim("batch")}
        other = torch.export.export(transformer, (example,), dynamic_shapes=(batch,)).module()
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated, but in use
            other = torch.jit.trace(transformer, example) if how == "trace" else torch.jit.script(transformer)
    for batch in (example, images, images[:1]):
        assert torch.allclose(other(batch), transformer(batch), atol=1e-6)


def test_the_transformer_before_a_classifier_of_ones_own_learns_at_its_own_rate():
    """As in the docstring of stn.py."""
    torch.manual_seed(0)
    images, labels = torch.rand(16, 3, 64, 96), torch.randint(10, (16,))
    transformer = SpatialTransformer(in_size=(64, 96), out_size=32, channels=3)
    classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10))
    model = torch.nn.Sequential(transformer, classifier)
    optimizer = torch.optim.SGD(
        [{"params": transformer.parameters(), "lr": 0.001}, {"params": classifier.parameters()}], lr=0.01
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    assert F.cross_entropy(model(images), labels) < loss
    for name, parameter in model.named_parameters():
        rate = 0.001 if name.startswith("0.") else 0.01
        assert torch.allclose(parameter, before[name] - rate * parameter.grad, rtol=0, atol=1e-7)
    assert transformer.fc_loc[-1].weight.grad.abs().max() > 0
    theta = transformer.theta(images)
    assert scale(theta).isfinite() and inside(theta, 32) > 0.9 and spread(theta) > 0


# ------------------------------------------------------------------------------------------------- precision, and tools


def pixels_off(transformer, images, theta, **autocast):
    """How far from the right place each point is sampled, at most, in pixels: the images hold their own coordinates."""
    with torch.autocast("cpu", **autocast):
        sampled = transformer.sample(images, theta)
    size = images.shape[-1]
    grid = F.affine_grid(theta.double(), [len(theta), 1, *transformer.out_size], align_corners=False)
    wanted = ((grid + 1) * size - 1).permute(0, 3, 1, 2) / 2
    return (sampled.double() * size - wanted).abs().max().item()


@pytest.mark.parametrize("size", [60, 224, 512])
def test_under_autocast_points_are_sampled_where_they_should_be(size):
    """A ramp in x and one in y, read where theta says; in bfloat16 a point would be up to a pixel off at 512."""
    ramp = torch.arange(size).expand(size, size) / size
    images = torch.stack([ramp, ramp.T]).expand(3, 2, size, size)
    theta = torch.stack([0.5 * EYE, 0.4 * turn(30), 0.3 * EYE + torch.tensor([[0, 0, 0.31], [0, 0, -0.27]])])
    transformer = SpatialTransformer(size, 57, channels=2)
    assert pixels_off(transformer, images, theta, dtype=torch.bfloat16) < 0.01
    assert pixels_off(transformer, images, theta, enabled=False) < 0.01


def test_under_autocast_theta_is_as_precise_as_the_last_layers_weights():
    transformer, images = moving(in_size=60), torch.rand(8, 1, 60, 60)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        theta, seen = transformer.theta(images), transformer(images)
        assert torch.equal(transformer.sample(images, theta), seen)
        for measure in (scale, inside, spread):
            assert measure(theta) == measure(theta.clone())
    assert theta.dtype == seen.dtype == torch.float32
    assert (theta - transformer.theta(images)).abs().max() < 0.02  # the features before it are in 8 bits
    assert len(theta.unique()) == theta.numel()  # not rounded to the few numbers of 8 bits near 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [60, 512])
def test_in_half_of_the_precision_the_grid_is_still_in_the_whole_of_it(dtype, size):
    transformer = moving(in_size=size, fill=-0.42).to(dtype)
    images = torch.rand(4, 1, size, size).to(dtype)
    theta = transformer.theta(images)
    seen = transformer(images)
    assert theta.dtype == seen.dtype == dtype and seen.isfinite().all()
    wanted = SpatialTransformer(size, fill=transformer.fill.item()).sample(images.float(), theta.float())
    assert torch.equal(seen, wanted.to(dtype))
    assert inside(theta, size) == inside(theta.float(), size) and inside(theta, size).dtype == torch.float32


def test_fill_is_one_value_or_one_a_channel():
    fill = (-2.1, -2.0, -1.8)
    away = torch.tensor([[1.0, 0, 9], [0, 1, 9]]).expand(2, 2, 3)
    for given in (fill, list(fill), np.array(fill), torch.tensor(fill)):
        transformer = SpatialTransformer(60, channels=3, fill=given)
        sampled = transformer.sample(torch.rand(2, 3, 60, 60), away)
        assert torch.allclose(sampled, torch.tensor(fill).view(3, 1, 1).expand(2, 3, 28, 28))
    assert "fill" not in transformer.state_dict()  # weights of other versions load
    each = SpatialTransformer(60, channels=3, fill=-2.1).sample(torch.rand(2, 3, 60, 60), away)
    assert torch.allclose(each, torch.tensor(-2.1))
    for wrong in (math.nan, math.inf, (0.1, 0.2), (0.1, math.nan, 0.2), ()):
        with pytest.raises(ValueError, match=re.escape(f"fill is {wrong}, but should be")):
            SpatialTransformer(60, channels=3, fill=wrong)


def test_inside_needs_no_more_memory_for_more_images():
    """The largest tensor that is made is that of 64 images; the value is that of all at once."""
    largest = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            largest.append(out.numel() if torch.is_tensor(out) else 0)
            return out

    theta = maps(300, 0.5)
    with Sizes():
        value = inside(theta, 100)
    assert max(largest) <= 64 * 100 * 100 * 3
    grid = F.affine_grid(theta, [300, 1, 100, 100], align_corners=False)
    assert value.item() == (grid.abs() <= 1).all(dim=-1).double().mean().float().item() and 0.1 < value < 0.9


def test_numpys_whole_numbers_are_sizes():
    transformer = SpatialTransformer(np.int64(60), out_size=(np.int32(20), np.uint8(30)), channels=np.int64(3))
    assert transformer(torch.rand(2, 3, 60, 60)).shape == (2, 3, 20, 30)
    for wrong in (np.float64(60), 60.0, "60", np.int64(0), (60, 60, 1), None):
        with pytest.raises(ValueError, match="a size is .*, but should be a side in pixels or"):
            SpatialTransformer(wrong)


def test_an_empty_batch_passes_through():
    model = STNClassifier(60)
    images = torch.rand(0, 1, 60, 60)
    assert model.stn.theta(images).shape == (0, 2, 3) and model.stn(images).shape == (0, 1, 28, 28)
    assert model.eval()(images).shape == (0, 10)


def test_torch_fx_traces_the_network():
    model = STNClassifier(60).eval()
    torch.nn.init.normal_(model.stn.fc_loc[-1].weight, std=0.1)
    images = torch.rand(5, 1, 60, 60)
    traced = torch.fx.symbolic_trace(model)
    assert torch.equal(traced(images), model(images))
    with pytest.raises(ValueError, match="images are"):
        traced(images[..., :30])
    extractor = create_feature_extractor(model, {"stn.fc_loc": "theta", "classifier.7": "features"})
    found = extractor(images)
    assert torch.equal(found["theta"].view(-1, 2, 3), model.stn.theta(images)) and found["features"].shape == (5, 320)


@pytest.mark.parametrize("out_size", [20, 16, (20, 40)])
def test_the_classifier_takes_what_the_transformer_returns(out_size):
    model = STNClassifier(60, transformer=partial(SpatialTransformer, out_size=out_size))
    assert model(torch.rand(3, 1, 60, 60)).shape == (3, 10)
