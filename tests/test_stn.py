import math

import pytest
import torch
import torch.nn.functional as F

from stn import SpatialTransformer, STNClassifier, inside, scale


def maps(n, spread=1.0):
    """Random affine maps, many of them partly and some wholly outside the image."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(n, 2, 3, generator=generator) * spread
    theta[0, :, 2] = 9  # wholly outside
    return theta


def bilinear(image, theta, row, column, out_size, fill):
    """One sample in float64, as the definition has it: pixel centres at half-integers, `fill` everywhere outside."""
    x, y = (2 * column + 1) / out_size - 1, (2 * row + 1) / out_size - 1
    side = len(image)
    u, v = (((a * x + b * y + c + 1) * side - 1) / 2 for a, b, c in theta.double().tolist())
    total = 0.0
    for i in (math.floor(v), math.floor(v) + 1):
        for j in (math.floor(u), math.floor(u) + 1):
            value = image[i][j].item() if 0 <= i < side and 0 <= j < side else fill
            total += value * (1 - abs(v - i)) * (1 - abs(u - j))
    return total


def test_the_transformer_starts_as_the_identity():
    images = torch.rand(3, 1, 60, 60)
    transformer = SpatialTransformer(60)
    assert torch.equal(transformer.theta(images), torch.tensor([[1.0, 0, 0], [0, 1, 0]]).expand(3, 2, 3))
    assert torch.allclose(SpatialTransformer(28)(images[..., :28, :28]), images[..., :28, :28], atol=1e-5)


@pytest.mark.parametrize("fill", [0.0, -0.4242])
def test_a_sample_is_the_bilinear_formula_inside_on_the_border_and_outside(fill):
    images = torch.rand(8, 1, 20, 20, generator=torch.Generator().manual_seed(1)) + 0.5
    theta = maps(8)
    theta[1] = torch.tensor([[1.0, 0, 0], [0, 1, 0]])  # inside
    theta[2] = torch.tensor([[1.1, 0, 0], [0, 1.1, 0]])  # its outermost points lie in the rim of half a pixel
    sampled = SpatialTransformer(20, out_size=12, fill=fill).sample(images, theta)
    outside = 0
    for n in range(8):
        for row in range(12):
            for column in range(12):
                expected = bilinear(images[n, 0], theta[n], row, column, 12, fill)
                assert sampled[n, 0, row, column].item() == pytest.approx(expected, abs=1e-4)
                outside += expected == fill
    assert 144 < outside < 8 * 144  # more than the one map that was put there


def test_filling_with_black_is_sampling_the_raw_image_and_normalizing_afterwards():
    mean, std = 0.1307, 0.3081
    raw, theta = torch.rand(50, 1, 60, 60), maps(50)
    black = SpatialTransformer(60, fill=-mean / std).sample((raw - mean) / std, theta)
    afterwards = (SpatialTransformer(60).sample(raw, theta) - mean) / std
    assert torch.allclose(black, afterwards, atol=1e-5)
    frame = SpatialTransformer(60).sample((raw - mean) / std, theta)
    assert (frame - afterwards).abs().max() > 0.4  # what the fill is for


def test_scale_is_the_side_of_the_sampled_region():
    turn = math.radians(30)
    rotation = torch.tensor([[math.cos(turn), -math.sin(turn), 0.3], [math.sin(turn), math.cos(turn), -0.1]])
    mirror = torch.tensor([[-1.0, 0, 0], [0, 1, 0]])
    stretch = torch.tensor([[2.0, 0, 0], [0, 0.5, 0]])
    flat = torch.tensor([[1.0, 1, 0], [1, 1, 0]])
    for theta, side in ((rotation, 1), (0.7 * rotation, 0.7), (mirror, 1), (stretch, 1), (flat, 0)):
        assert scale(theta[None]).item() == pytest.approx(side, abs=1e-6)
    assert scale(torch.stack([rotation, 0.5 * rotation])).item() == pytest.approx(0.75)


def test_inside_is_the_fraction_of_grid_points_within_the_image():
    eye = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    right = torch.tensor([[1.0, 0, 1], [0, 1, 0]])  # by half the image
    away = torch.tensor([[1.0, 0, 2], [0, 1, 0]])
    for theta, fraction in ((eye, 1), (0.5 * eye, 1), (2 * eye, 1 / 4), (right, 1 / 2), (away, 0)):
        assert inside(theta[None]).item() == fraction
    assert inside(torch.stack([eye, right, away, away])).item() == 0.375
    assert inside(2 * eye[None], out_size=4).item() == 1 / 4


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


def test_wrong_sizes_are_refused_with_what_was_given_and_what_is_wanted():
    with pytest.raises(ValueError, match="in_size is 17, .* at least 18 x 18"):
        SpatialTransformer(17)
    assert SpatialTransformer(18)(torch.zeros(1, 1, 18, 18)).shape == (1, 1, 28, 28)
    with pytest.raises(ValueError, match=r"images are \(2, 1, 28, 28\), but should be \(N, 1, 60, 60\)"):
        STNClassifier()(torch.zeros(2, 1, 28, 28))
