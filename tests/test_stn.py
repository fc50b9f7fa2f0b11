import math
import re
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

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


def moving(**options):
    """A transformer whose maps depend on the images, unlike a new one's."""
    torch.manual_seed(0)
    transformer = SpatialTransformer(**options)
    torch.nn.init.normal_(transformer.fc_loc[-1].weight, std=0.1)
    return transformer.eval()


def test_the_identity_is_what_all_modules_are_reset_to():
    transformer = moving(in_size=28)
    for module in transformer.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert torch.equal(transformer.theta(torch.rand(3, 1, 28, 28)), EYE.expand(3, 2, 3))


def test_fill_is_kept_with_the_weights_and_older_weights_load(tmp_path):
    """Also into a network that was made without memory, and from an array that is changed afterwards."""
    fill = np.array([0.25, 0.5, 0.75], dtype=np.float32)
    made = SpatialTransformer(28, fill=fill, channels=3)
    fill[:] = 0
    with torch.device("meta"):
        other = SpatialTransformer(28, fill=[0, 0, 0], channels=3)
    other = other.to("meta").to_empty(device="cpu")
    other.load_state_dict(made.state_dict())
    assert other.fill.flatten().tolist() == made.fill.flatten().tolist() == [0.25, 0.5, 0.75]
    older = {name: value for name, value in made.state_dict().items() if name != "fill"}
    made.load_state_dict(older)
    assert made.fill.flatten().tolist() == [0.25, 0.5, 0.75]


def test_whole_numbers_are_sampled_as_the_floats_that_they_stand_for():
    images, theta = torch.randint(256, (4, 1, 28, 28), dtype=torch.uint8), maps(4, 0.5)
    transformer = SpatialTransformer(28, fill=-0.5)
    assert torch.equal(transformer.sample(images, theta), transformer.sample(images.float(), theta))


@pytest.mark.parametrize("size", [60, (18, 30)])
def test_the_transformer_starts_as_the_identity_and_can_learn(size):
    transformer = SpatialTransformer(size, size)
    images = torch.rand(3, 1, *transformer.in_size)
    assert torch.equal(transformer.theta(images), EYE.expand(3, 2, 3))
    seen = transformer(images)
    assert torch.allclose(seen, images, atol=1e-5)
    (seen * torch.rand_like(seen)).sum().backward()
    assert transformer.fc_loc[-1].weight.grad.any() and transformer.fc_loc[-1].bias.grad.all()


@pytest.mark.parametrize("fill", [0.0, -0.4242, (-2.1, 0.3, -1.8)])
def test_a_sample_is_the_bilinear_formula_inside_on_the_border_and_outside(fill):
    images = torch.rand(6, 3, 18, 30, generator=torch.Generator().manual_seed(1)) + 0.5
    shift = torch.tensor([[1.0, 0, 0.5], [0, 1, -0.25]])  # 7.5 pixels to the right, 2.25 up
    theta = torch.stack([EYE, 1.1 * EYE, shift, turn(30), *maps(2)])  # 1.1: points in the rim of half a pixel
    size = np.int64(18), 30
    sampled = SpatialTransformer(size, (5, np.uint8(7)), fill, channels=3).sample(images, theta)
    assert sampled.shape == (6, 3, 5, 7)
    fills = torch.tensor(fill).expand(3).tolist()
    outside = 0
    for (n, channel, row, column), value in np.ndenumerate(sampled.numpy()):
        expected = bilinear(images[n, channel], theta[n], row, column, (5, 7), fills[channel])
        assert value == pytest.approx(expected, abs=1e-4)
        outside += expected == fills[channel]
    assert 3 * 35 < outside < 6 * 3 * 35  # more than the one map that was put there


def test_scale_is_the_side_of_the_sampled_region_and_its_gradient_finite_where_that_is_flat():
    rotation = turn(30) + torch.tensor([[0, 0, 0.3], [0, 0, -0.1]])
    mirror = torch.tensor([[-1.0, 0, 0], [0, 1, 0]])
    stretch = torch.tensor([[2.0, 0, 0], [0, 0.5, 0]])
    flat = torch.tensor([[1.0, 1, 0], [1, 1, 0]])
    for theta, side in ((rotation, 1), (0.7 * rotation, 0.7), (mirror, 1), (stretch, 1), (flat, 0)):
        assert scale(theta[None]).item() == pytest.approx(side, abs=1e-6)
    assert scale(torch.stack([rotation, 0.5 * rotation])).item() == pytest.approx(0.75)
    theta = torch.stack([2 * EYE, flat, 0 * EYE]).requires_grad_()
    scale(theta).backward()
    assert torch.allclose(theta.grad[0], EYE / 2 / 3) and not theta.grad[1:].any()  # d sqrt(ad - bc), of three maps


def test_inside_is_the_fraction_of_grid_points_within_the_image():
    right = torch.tensor([[1.0, 0, 1], [0, 1, 0]])  # by half the image
    away = torch.tensor([[1.0, 0, 2], [0, 1, 0]])
    for theta, fraction in ((EYE, 1), (0.5 * EYE, 1), (2 * EYE, 1 / 4), (right, 1 / 2), (away, 0)):
        assert inside(theta[None]).item() == fraction
    assert inside(torch.stack([EYE, right, away, away])).item() == 0.375
    wide = torch.tensor([[2.0, 0, 0], [0, 1.4, 0]])[None]
    assert inside(wide, out_size=(3, 8)).item() == 4 / 8  # all rows: the outer ones are at +-2/3
    many = maps(300, 0.5)  # which are taken in parts
    grid = F.affine_grid(many, [300, 1, 28, 28], align_corners=False)
    assert inside(many).item() == pytest.approx((grid.abs() <= 1).all(dim=-1).double().mean().item(), rel=1e-6)


def test_spread_is_how_far_the_centres_differ_between_images():
    theta = maps(9)
    theta[:, :, 2] = torch.tensor([0.4, -0.2]) + torch.tensor([[0.3, 0], [0, 0], [-0.3, 0]]).repeat(3, 1)
    along_x = spread(theta).item()
    assert along_x == pytest.approx(0.3 * math.sqrt(2 / 3 / 2), rel=1e-5)  # var(t_x) = 0.3^2 * 2 / 3, var(t_y) = 0
    theta[:, :, 2] = theta[:, :, 2].flip(1)
    assert spread(theta).item() == pytest.approx(along_x)
    assert spread(maps(1).expand(50, 2, 3)).item() == pytest.approx(0, abs=1e-6)  # one map for all


@pytest.mark.parametrize("options", [{}, {"slope": 0.1}])
def test_the_network_is_these_functions_one_after_the_other(options):
    """Those of the published weights, whose names and number these are; `slope` is of the localization net alone."""
    torch.manual_seed(0)
    slope, images = options.get("slope", 0), torch.rand(5, 1, 60, 60)
    model = STNClassifier(fill=-0.4, transformer=partial(SpatialTransformer, **options)).eval()
    torch.nn.init.normal_(model.stn.fc_loc[-1].weight, std=0.05)
    w = dict(model.named_parameters())
    assert sum(value.numel() for value in w.values()) == 63_200

    def conv(x, name, slope=0):
        return F.leaky_relu(F.max_pool2d(F.conv2d(x, w.pop(f"{name}.weight"), w.pop(f"{name}.bias")), 2), slope)

    def linear(x, name):
        return x @ w.pop(f"{name}.weight").T + w.pop(f"{name}.bias")

    x = conv(conv(images, "stn.localization.0", slope), "stn.localization.3", slope).reshape(5, 1210)
    theta = linear(F.leaky_relu(linear(x, "stn.fc_loc.0"), slope), "stn.fc_loc.2").reshape(5, 2, 3)
    assert torch.allclose(model.stn.theta(images), theta, atol=1e-6)
    x = model.stn.sample(images, theta)
    assert x.shape == (5, 1, 28, 28)
    x = conv(conv(x, "classifier.0"), "classifier.3").reshape(5, 320)
    logits = linear(F.relu(linear(x, "classifier.8")), "classifier.11")
    assert torch.allclose(model(images), logits, atol=1e-5) and not w


@pytest.mark.parametrize("out_size", [28, 16, (24, 16)])
def test_the_map_of_another_transformer_is_the_one_that_classifies_in_any_out_size(out_size):
    class Half(SpatialTransformer):
        def theta(self, images):
            return 0.5 * EYE.expand(images.size(0), 2, 3)

    images = torch.rand(4, 1, 60, 60)
    model = STNClassifier(transformer=partial(Half, out_size=out_size), fill=-0.4).eval()
    assert type(model.stn) is Half and model.stn.fill == -0.4
    middle = torch.zeros_like(images)
    middle[..., 15:45, 15:45] = images[..., 15:45, 15:45]  # it sees no more than the half in the middle
    assert torch.equal(model(images), model(middle)) and not torch.allclose(model(images), model(images.flip(3)))


def test_sizes_and_shapes_are_refused_with_what_was_given_and_what_is_wanted():
    for size, shown in ((17, "17"), ((60, 17), r"\(60, 17\)")):
        with pytest.raises(ValueError, match=f"in_size is {shown}, .* at least 18 x 18"):
            SpatialTransformer(size)
    assert SpatialTransformer(18)(torch.zeros(1, 1, 18, 18)).shape == (1, 1, 28, 28)
    for size in ((60, 60, 1), (60, 60.0), 0, None):
        for sizes in ({"in_size": size}, {"in_size": 60, "out_size": size}):
            with pytest.raises(ValueError, match="a size is .*, but should be a side in pixels or .height, width."):
                SpatialTransformer(**sizes)
    for fill in (math.nan, (0.1, 0.2), (0.1, math.inf, 0.2)):
        with pytest.raises(ValueError, match=re.escape(f"fill is {fill}, but should be")):
            SpatialTransformer(60, channels=3, fill=fill)

    model, rgb = STNClassifier(), SpatialTransformer((40, 64), channels=3)
    for module, shape, wanted in ((model, (1, 60, 60), "N, 1, 60, 60"), (rgb, (2, 3, 64, 40), "N, 3, 40, 64")):
        with pytest.raises(ValueError) as error:
            module(torch.zeros(shape))
        assert str(error.value) == f"images are {list(shape)}, but should be [{wanted}]"


@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated, but in use
@pytest.mark.parametrize("how", ["export", "trace", "fx"])
def test_what_is_exported_or_traced_gives_the_same_values_for_any_batch(how):
    transformer = moving(in_size=(40, 64), out_size=20, channels=3, fill=-0.4)
    example, images = torch.rand(2, 3, 40, 64), torch.rand(7, 3, 40, 64)
    if how == "export":
        batch = {0: torch.export.Dim("batch")}
        other = torch.export.export(transformer, (example,), dynamic_shapes=(batch,)).module()
    elif how == "fx":
        other = torch.fx.symbolic_trace(transformer)
        with pytest.raises(ValueError, match="images are"):
            other(images[..., :30])
    else:
        other = torch.jit.trace(transformer, example)
    for batch in (example, images, images[:1]):
        assert torch.allclose(other(batch), transformer(batch), atol=1e-6)


# ------------------------------------------------------------------------------------------------- precision, and tools


def test_under_autocast_points_are_sampled_where_they_should_be():
    """A ramp in x and one in y, read where theta says; in bfloat16 a point would be up to a pixel off at 512."""
    ramp = torch.arange(512).expand(512, 512) / 512
    theta = torch.stack([0.5 * EYE, 0.4 * turn(30), 0.3 * EYE + torch.tensor([[0, 0, 0.31], [0, 0, -0.27]])])
    with torch.autocast("cpu", torch.bfloat16):
        transformer = SpatialTransformer(512, 57, channels=2)
        sampled = transformer.sample(torch.stack([ramp, ramp.T]).expand(3, 2, -1, -1), theta)
    grid = F.affine_grid(theta.double(), [3, 1, 57, 57], align_corners=False)
    pixels = ((grid + 1) * 512 - 1).permute(0, 3, 1, 2) / 2
    assert (sampled.double() * 512 - pixels).abs().max() < 0.01


def test_under_autocast_theta_is_as_precise_as_the_last_layers_weights():
    transformer, images = moving(in_size=60), torch.rand(8, 1, 60, 60)
    with torch.autocast("cpu", torch.bfloat16):
        theta, seen = transformer.theta(images), transformer(images)
        measured = scale(theta), inside(theta), spread(theta)
    assert torch.equal(transformer.sample(images, theta), seen) and theta.dtype == seen.dtype == torch.float32
    assert measured == (scale(theta), inside(theta), spread(theta))
    assert (theta - transformer.theta(images)).abs().max() < 0.02  # the features before it are in 8 bits
    assert len(theta.unique()) == theta.numel()  # not rounded to the few numbers of 8 bits near 1


def test_in_half_of_the_precision_the_grid_is_still_in_the_whole_of_it():
    transformer = moving(in_size=60, fill=-0.42).bfloat16()
    images = torch.rand(4, 1, 60, 60).bfloat16()
    theta = transformer.theta(images)
    wanted = SpatialTransformer(60, fill=transformer.fill.item()).sample(images.float(), theta.float())
    assert torch.equal(transformer(images), wanted.bfloat16()) and theta.dtype == torch.bfloat16
    assert inside(theta) == inside(theta.float()) and inside(theta).dtype == torch.float32


def test_an_empty_batch_passes_through():
    model = STNClassifier(60)
    images = torch.rand(0, 1, 60, 60)
    assert model.stn.theta(images).shape == (0, 2, 3) and model.stn(images).shape == (0, 1, 28, 28)
    assert model.eval()(images).shape == (0, 10)
