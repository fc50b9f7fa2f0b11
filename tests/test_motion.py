"""How far a step moves the sampling points, and the limit of that."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import stn
from stn import limit_motion, motion

DEVICES = ["cpu", *["cuda"] * torch.cuda.is_available()]
EYE = torch.tensor([[1.0, 0, 0], [0, 1, 0]])


def sampled_motion(before, after, height, width):
    """Root of the mean square distance in pixels between two grids of 300 x 300 points."""
    grids = [F.affine_grid(theta.double(), [len(theta), 1, 300, 300], align_corners=False) for theta in (before, after)]
    pixels = (grids[1] - grids[0]) * torch.tensor([width / 2, height / 2])
    return pixels.square().sum(dim=3).mean().sqrt().item()


@pytest.mark.parametrize("size", [60, (60, 60), (64, 96), (33, 200)])
def test_motion_is_the_root_mean_square_over_a_sampled_grid(size):
    generator = torch.Generator().manual_seed(0)
    before, after = (torch.randn(20, 2, 3, generator=generator) for _ in range(2))
    height, width = size if isinstance(size, tuple) else (size, size)
    assert motion(before, after, size).item() == pytest.approx(sampled_motion(before, after, height, width), rel=1e-4)


def test_motion_of_simple_steps_in_pixels():
    right = EYE + torch.tensor([[0, 0, 2 / 96], [0, 0, 0]])  # by a pixel of an image 96 wide
    down = EYE + torch.tensor([[0, 0, 0], [0, 0, 2 / 64]])
    assert motion(EYE[None], right[None], (64, 96)).item() == pytest.approx(1, rel=1e-5)
    assert motion(EYE[None], down[None], (64, 96)).item() == pytest.approx(1, rel=1e-5)
    larger = EYE * 1.1  # (48 * 0.1)^2 / 3 + (32 * 0.1)^2 / 3
    assert motion(EYE[None], larger[None], (64, 96)).item() == pytest.approx(math.sqrt((4.8**2 + 3.2**2) / 3), rel=1e-5)
    pair = torch.stack([EYE, EYE]), torch.stack([EYE, right])
    assert motion(*pair, (64, 96)).item() == pytest.approx(math.sqrt(1 / 2), rel=1e-5)  # one of two images


def test_motion_takes_no_other_shapes():
    for before, after in ((EYE, EYE), (EYE[None], EYE[None, :, :2]), (EYE[None], EYE.expand(2, 2, 3))):
        with pytest.raises(ValueError, match="theta is .* but should be"):
            motion(before, after, 60)


class TutorialNet(nn.Module):
    """The localization net of the PyTorch tutorial, as its class Net has it, before a linear classifier."""

    def __init__(self):
        super().__init__()
        self.localization = nn.Sequential(
            nn.Conv2d(1, 8, kernel_size=7),
            nn.MaxPool2d(2, stride=2),
            nn.ReLU(True),
            nn.Conv2d(8, 10, kernel_size=5),
            nn.MaxPool2d(2, stride=2),
            nn.ReLU(True),
        )
        self.fc_loc = nn.Sequential(nn.Linear(10 * 3 * 3, 32), nn.ReLU(True), nn.Linear(32, 3 * 2))
        self.fc_loc[2].weight.data.zero_()
        self.fc_loc[2].bias.data.copy_(torch.tensor([1, 0, 0, 0, 1, 0], dtype=torch.float))
        self.fc = nn.Linear(28 * 28, 10)

    def theta(self, x):
        return self.fc_loc(self.localization(x).view(-1, 10 * 3 * 3)).view(-1, 2, 3)

    def forward(self, x):
        grid = F.affine_grid(self.theta(x), x.size(), align_corners=False)
        return self.fc(F.grid_sample(x, grid, align_corners=False).flatten(1))


class Normalized(TutorialNet):
    """A localization net with batch normalization and dropout."""

    def __init__(self):
        super().__init__()
        self.localization.insert(1, nn.BatchNorm2d(8))
        self.fc_loc.insert(1, nn.Dropout(0.3))


def ours():
    model = stn.STNClassifier(28)
    model.theta, model.parts = model.stn.theta, model.stn
    return model


def theirs(kind):
    model = kind()
    model.parts = (model.localization, model.fc_loc)
    return model


NETWORKS = {"ours": ours, "the tutorial's": lambda: theirs(TutorialNet), "normalized": lambda: theirs(Normalized)}
OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=1.0),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=1.0, momentum=0.9),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=0.1),
}


def batches(count, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        images = torch.rand(64, 1, 28, 28, generator=generator).to(device, dtype)
        yield images, torch.randint(10, (64,), generator=generator).to(device)


def descend(model, optimizer, images, labels):
    optimizer.zero_grad()
    F.cross_entropy(model(images), labels).backward()


@torch.no_grad()
def predict(model, images):
    """Theta in eval mode, of a network that is in train mode."""
    theta = model.eval().theta(images)
    model.train()
    return theta


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("network", NETWORKS)
def test_no_step_moves_the_region_further_at_rates_a_hundred_times_too_large(network, optimizer, device):
    torch.manual_seed(0)
    model = NETWORKS[network]().to(device)
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    shortened = 0
    for images, labels in batches(200 if network == "ours" else 60, device=device):
        descend(model, optimizer, images, labels)
        before = predict(model, images[:16])
        with limit_motion(model.theta, images[:16], model.parts, pixels=0.2) as step:
            optimizer.step()
        moved = motion(before, predict(model, images[:16]), 28).item()
        assert moved <= 0.2 and step.motion.item() == pytest.approx(moved, rel=1e-4, abs=1e-6)
        assert 0 <= step.kept <= 1
        shortened += step.kept < 1
    assert shortened >= 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_that_is_too_long_goes_back_along_itself(dtype):
    torch.manual_seed(0)
    model = ours().to(dtype)
    images, labels = next(batches(1, dtype))
    descend(model, optimizer := torch.optim.SGD(model.parameters(), lr=1.0), images, labels)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with limit_motion(model.theta, images[:16], model.stn, pixels=0.01) as step:
        optimizer.step()
    assert 0 < step.kept < 1 and 0.0095 < step.motion <= 0.01
    for name, parameter in model.named_parameters():
        part = step.kept if name.startswith("stn.") else 1
        assert torch.allclose(parameter, before[name] - part * parameter.grad, rtol=1e-4, atol=1e-7), name


@pytest.mark.parametrize("pixels", [1e3, math.inf])
@pytest.mark.parametrize("network", NETWORKS)
def test_a_step_that_is_short_enough_is_left_as_it_is_to_the_last_bit(network, pixels):
    torch.manual_seed(0)
    plain = NETWORKS[network]()
    limited = copy.deepcopy(plain)
    limited.parts = limited.stn if network == "ours" else (limited.localization, limited.fc_loc)
    limited.theta = limited.stn.theta if network == "ours" else limited.theta
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9) for model in (plain, limited)]
    states = []
    for model, optimizer in zip((plain, limited), optimizers, strict=True):
        torch.manual_seed(3)
        for images, labels in batches(5):
            descend(model, optimizer, images, labels)
            if model is plain:
                optimizer.step()
            else:
                with limit_motion(model.theta, images[:16], model.parts, pixels) as step:
                    optimizer.step()
                assert step.kept == 1 and step.motion > 0
        states.append((model.state_dict(), torch.get_rng_state()))
    assert torch.equal(states[0][1], states[1][1])
    assert all(torch.equal(value, states[1][0][name]) for name, value in states[0][0].items())


def random_state(device):
    return torch.cuda.get_rng_state() if device == "cuda" else torch.get_rng_state()


@pytest.mark.parametrize("device", DEVICES)
def test_nothing_but_the_modules_parameters_is_touched(device):
    """Buffers, gradients, the optimizer's state, random numbers and modes, also those that are not all alike."""
    torch.manual_seed(0)
    model = theirs(Normalized).to(device)
    model.localization[1].eval()  # batch normalization that was frozen
    optimizer = torch.optim.Adam(model.parameters(), lr=1.0)
    images, labels = next(batches(1, device=device))
    descend(model, optimizer, images, labels)
    twin = copy.deepcopy(model)
    free = torch.optim.Adam(twin.parameters(), lr=1.0)
    for own, other in zip(twin.parameters(), model.parameters(), strict=True):
        own.grad = other.grad.clone()
    free.step()
    modes = [module.training for module in model.modules()]
    random = random_state(device)
    with limit_motion(model.theta, images[:16], model.parts, 0.001) as step:
        assert [module.training for module in model.modules()] == modes
        optimizer.step()
    assert step.kept < 1 and not torch.equal(model.fc_loc[-1].weight, twin.fc_loc[-1].weight)
    assert torch.equal(model.fc.weight, twin.fc.weight)
    assert [module.training for module in model.modules()] == modes and torch.equal(random_state(device), random)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), twin.buffers(), strict=True))
    for own, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(own.grad, other.grad)
        assert torch.equal(optimizer.state[own]["exp_avg"], free.state[other]["exp_avg"])


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("name", ["stn.localization.0.weight", "stn.localization.3.bias", "stn.fc_loc.2.bias"])
def test_a_step_that_makes_weights_infinite_or_nan_is_taken_back(name, value):
    torch.manual_seed(0)
    model = ours()
    images, _ = next(batches(1))
    before = {key: parameter.clone() for key, parameter in model.state_dict().items()}
    with limit_motion(model.theta, images[:16], model.stn, 0.1) as step:
        with torch.no_grad():
            dict(model.named_parameters())[name].view(-1)[0] = value
            model.classifier[0].bias += 1
    assert step.kept == 0 and step.motion == 0
    for key, parameter in model.named_parameters():
        assert torch.equal(parameter, before[key]) == (key != "classifier.0.bias")


def test_a_skipped_step_moves_nothing_and_an_error_in_a_step_passes():
    model = ours()
    images, _ = next(batches(1))
    with limit_motion(model.theta, images[:16], model.stn) as step:
        pass  # as GradScaler.step does where a gradient is infinite
    assert step.kept == 1 and step.motion == 0
    with pytest.raises(ZeroDivisionError):
        with limit_motion(model.theta, images[:16], model.stn):
            raise ZeroDivisionError
    assert model.training


def test_under_autocast_motion_is_measured_in_the_weights_precision():
    """In bfloat16 a region of 512 pixels could be placed to a pixel or two only, and most steps would seem to be 0."""
    torch.manual_seed(0)
    model = stn.STNClassifier(60)
    images, labels = torch.rand(32, 1, 60, 60), torch.randint(10, (32,))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        descend(model, optimizer, images, labels)
        with limit_motion(model.stn.theta, images[:16], model.stn) as step:
            optimizer.step()
    assert 0 < step.motion < 1e-3 and step.motion.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16), limit_motion(model.stn.theta, images.bfloat16()[:16], model.stn):
        pass  # images in half of the precision are taken


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_gpus_mixed_precision_with_a_scaler_is_limited(dtype):
    torch.manual_seed(0)
    model = stn.STNClassifier(60).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
    shortened = 0
    for _ in range(30):
        images, labels = torch.rand(64, 1, 60, 60, device="cuda"), torch.randint(10, (64,), device="cuda")
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype):
            loss = F.cross_entropy(model(images), labels)
        scaler.scale(loss).backward()
        before = predict(model.stn, images[:16])
        with limit_motion(model.stn.theta, images[:16], model.stn, 0.1) as step:
            scaler.step(optimizer)
        scaler.update()
        assert motion(before, predict(model.stn, images[:16]), 60) <= 0.1 * (1 + 1e-5)
        shortened += step.kept < 1
    assert shortened > 5


def test_arguments_that_cannot_be_are_refused_with_what_was_given():
    model, images = ours(), torch.rand(4, 1, 28, 28)
    refused = {
        "pixels is 0, but": (images, model.stn, 0),
        "pixels is -0.1, but": (images, model.stn, -0.1),
        "pixels is nan, but": (images, model.stn, math.nan),
        r"images are \[1, 28, 28\], but": (images[0], model.stn, 0.1),
        r"images are \[0, 1, 28, 28\], but": (images[:0], model.stn, 0.1),
        r"modules are ReLU\(\), but": (images, nn.ReLU(), 0.1),
        r"modules are \[\], but": (images, [], 0.1),
    }
    for message, (given, modules, pixels) in refused.items():
        with pytest.raises(ValueError, match=message):
            with limit_motion(model.theta, given, modules, pixels):
                raise AssertionError("the step was taken")


def test_slope_0_is_the_network_with_relus_and_another_lets_no_unit_die():
    torch.manual_seed(0)
    relu = stn.SpatialTransformer(60)
    torch.manual_seed(0)
    zero, leaky = stn.SpatialTransformer(60, slope=0.0), stn.SpatialTransformer(60, slope=0.1)
    leaky.load_state_dict(relu.state_dict())
    assert [type(m) for m in zero.modules()] == [type(m) for m in relu.modules()]
    slopes = [module.negative_slope for module in leaky.modules() if isinstance(module, nn.LeakyReLU)]
    assert slopes == [0.1] * 3 and not any(isinstance(module, nn.ReLU) for module in leaky.modules())
    images = torch.rand(8, 1, 60, 60)
    for transformer in (relu, leaky):
        transformer.fc_loc[0].bias.data.fill_(-100)  # every unit negative, on every image
        nn.init.normal_(transformer.fc_loc[2].weight)
        transformer.theta(images).sum().backward()
        assert transformer.fc_loc[0].weight.grad.any() == (transformer is leaky)
