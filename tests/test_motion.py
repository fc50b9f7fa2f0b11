"""How far a step moves the sampling points, and the limit of that."""

import copy
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import stn
from assets.elsewhere import Transformed
from stn import STNClassifier, limit_motion, motion

DEVICES = ["cpu", *["cuda"] * torch.cuda.is_available()]
EYE = torch.tensor([[1.0, 0, 0], [0, 1, 0]])


@pytest.mark.parametrize("size, height, width", [(60, 60, 60), ((33, 200), 33, 200)])
def test_motion_is_the_root_mean_square_over_a_sampled_grid(size, height, width):
    maps = torch.randn(2, 10, 2, 3, generator=torch.Generator().manual_seed(0))
    before, after = (F.affine_grid(theta.double(), [10, 1, 200, 200], align_corners=False) for theta in maps)
    pixels = (after - before) * torch.tensor([width / 2, height / 2])
    assert motion(*maps, size).item() == pytest.approx(pixels.square().sum(dim=3).mean().sqrt().item(), rel=1e-4)


def normalized():
    """A localization net with batch normalization and dropout, given as several modules."""
    layers = nn.Conv2d(1, 8, 7), nn.BatchNorm2d(8), nn.MaxPool2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3)
    localization = nn.Sequential(*layers, nn.Linear(8 * 5 * 5, 6))
    localization[-1].weight.data.zero_()
    localization[-1].bias.data.copy_(EYE.flatten())
    return Transformed(localization, nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 10)), (28, 28))


def ours():
    return STNClassifier(28)


def limit(model, images, pixels=0.1):
    if isinstance(model, STNClassifier):
        return limit_motion(model.stn.theta, images[:16], model.stn, pixels)
    return limit_motion(model.theta, images[:16], tuple(model.localization), pixels)


@torch.no_grad()
def theta(model, images):
    """Of the images that the limit is on, in eval mode, of a network that is in train mode."""
    maps = getattr(model.eval(), "stn", model).theta(images[:16])
    model.train()
    return maps


def batches(count, device="cpu"):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        images = torch.rand(32, 1, 28, 28, generator=generator).to(device)
        yield images, torch.randint(10, (32,), generator=generator).to(device)


def descend(model, optimizer, images, labels):
    optimizer.zero_grad()
    F.cross_entropy(model(images), labels).backward()


OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=1.0),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=1.0, momentum=0.9),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=0.1),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("network", [ours, normalized])
def test_no_step_moves_the_region_further_at_rates_a_hundred_times_too_large(network, optimizer, device):
    torch.manual_seed(0)
    model = network().to(device)
    at_least = 1 if (network, optimizer) == (ours, "SGD") else 20  # its units soon die of such steps
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    shortened = 0
    for images, labels in batches(40, device):
        descend(model, optimizer, images, labels)
        before = theta(model, images)
        with limit(model, images, 0.2) as step:
            optimizer.step()
        moved = motion(before, theta(model, images), 28).item()
        assert moved <= 0.2 * (1 + 1e-5) and step.motion.item() == pytest.approx(moved, rel=1e-4, abs=1e-6)
        assert 0 <= step.kept <= 1
        shortened += step.kept < 1
    assert shortened >= at_least


def test_a_step_that_is_too_long_goes_back_along_itself():
    """But for weights that are not trained, here of eight bits."""
    torch.manual_seed(0)
    model = ours()
    model.stn.scales = nn.Parameter(torch.full((3,), 7, dtype=torch.int8), requires_grad=False)
    images, labels = next(batches(1))
    descend(model, optimizer := torch.optim.SGD(model.parameters(), lr=1.0), images, labels)
    before = copy.deepcopy(model.state_dict())
    with limit(model, images, 0.01) as step:
        optimizer.step()
    assert 0 < step.kept < 1 and 0.0095 < step.motion <= 0.01 and not step.motion.requires_grad
    assert model.stn.scales.tolist() == [7, 7, 7]
    del model.stn.scales
    for name, parameter in model.named_parameters():
        part = step.kept if name.startswith("stn.") else 1
        assert torch.allclose(parameter, before[name] - part * parameter.grad, rtol=1e-4, atol=1e-7), name


@pytest.mark.parametrize("shift", [torch.sqrt, torch.sign])
def test_a_step_is_shortened_until_it_is_short_enough_and_taken_back_if_it_never_is(shift):
    """The region moves by the root of the step, so that the first try is too long, or however short the step is."""
    layer, right = nn.Linear(1, 1, bias=False), torch.tensor([[0, 0, 1.0], [0, 0, 0]])
    layer.weight.data.zero_()
    with limit_motion(lambda _: (EYE + shift(layer.weight) * right)[None], torch.rand(1, 1, 28, 28), layer) as step:
        layer.weight.data.fill_(1)
    assert layer.weight.item() == pytest.approx(step.kept)
    assert 0.095 < step.motion <= 0.1 if shift is torch.sqrt else step.kept == step.motion == 0


@pytest.mark.parametrize("pixels", [0.001, 1e6, math.inf])
def test_nothing_but_the_modules_parameters_is_touched_and_they_only_where_the_step_is_too_long(pixels):
    """Not buffers, gradients, the optimizer's state, random numbers and modes, also those that are not all alike."""
    torch.manual_seed(0)
    model = normalized()
    model.localization[1].eval()  # batch normalization that was frozen
    optimizer = torch.optim.Adam(model.parameters(), lr=1.0)
    images, labels = next(batches(1))
    descend(model, optimizer, images, labels)
    twin = copy.deepcopy(model)
    free = torch.optim.Adam(twin.parameters(), lr=1.0)
    for own, other in zip(model.parameters(), twin.parameters(), strict=True):
        other.grad = own.grad.clone()
    free.step()
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    with limit(model, images, pixels) as step:
        assert [module.training for module in model.modules()] == modes
        optimizer.step()
    assert (step.kept < 1) == (pixels < 1) and (step.motion > 0.001) == (pixels > 1)
    assert [module.training for module in model.modules()] == modes and torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), twin.buffers(), strict=True))
    changed = [name for name, value in model.named_parameters() if not torch.equal(value, twin.get_parameter(name))]
    assert ("localization.6.weight" in changed) == (pixels < 1) and "classifier.1.weight" not in changed
    assert pixels < 1 or not changed
    for own, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(own.grad, other.grad)
        assert torch.equal(optimizer.state[own]["exp_avg"], free.state[other]["exp_avg"])


@pytest.mark.parametrize(
    "name, value",
    [("localization.0.weight", math.inf), ("localization.3.bias", -math.inf), ("fc_loc.2.bias", math.nan)],
)
def test_a_step_that_makes_weights_infinite_or_nan_is_taken_back(name, value):
    """An infinite bias before a ReLU does not show in theta."""
    model = ours()
    images, _ = next(batches(1))
    before = copy.deepcopy(model.state_dict())
    with limit(model, images) as step, torch.no_grad():
        model.stn.get_parameter(name).view(-1)[0] = value
        model.classifier[0].bias += 1
    assert step.kept == 0 and step.motion == 0
    for key, parameter in model.named_parameters():
        assert torch.equal(parameter, before[key]) == (key != "classifier.0.bias")


def test_a_skipped_step_moves_nothing_and_errors_pass_and_leave_the_modes():
    model = ours()
    images, _ = next(batches(1))
    with limit(model, images) as step:
        pass  # as GradScaler.step does where a gradient is infinite
    assert step.kept == 1 and step.motion == 0
    with pytest.raises(ZeroDivisionError), limit(model, images):
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), limit_motion(lambda _: 1 / 0, images, model.stn):
        pass
    assert all(module.training for module in model.modules())


def test_weights_that_come_back_between_two_steps_are_warned_of():
    """As those that a schedule-free optimizer keeps; a step that is limited again and again is not."""
    torch.manual_seed(0)
    model = ours()
    images, labels = next(batches(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            descend(model, optimizer, images, labels)
            with limit(model, images, 0.01):
                optimizer.step()
    with torch.no_grad():
        model.stn.fc_loc[-1].bias += 0.1
    with pytest.warns(UserWarning, match="not what the last limited step left"), limit(model, images):
        pass


def test_under_autocast_motion_is_measured_in_the_weights_precision():
    """In bfloat16 a region of 512 pixels could be placed to a pixel or two only, and most steps would seem to be 0."""
    torch.manual_seed(0)
    model = normalized()
    images, labels = next(batches(1))
    with torch.autocast("cpu", torch.bfloat16):
        descend(model, optimizer := torch.optim.SGD(model.parameters(), lr=1e-7), images, labels)
        with limit(model, images) as step:
            optimizer.step()
        with limit(model, images.bfloat16()):
            pass  # images in half of the precision are taken
    assert 0 < step.motion < 1e-3 and step.motion.dtype == torch.float32


def test_arguments_that_cannot_be_are_refused_with_what_was_given():
    model, images = ours(), torch.rand(4, 1, 28, 28)
    refused = {
        "pixels is 0, but": (images, model.stn, 0),
        "pixels is nan, but": (images, model.stn, math.nan),
        r"images are \[0, 1, 28, 28\], but": (images[:0], model.stn, 0.1),
        "nothing in the modules is trained": (images, nn.ReLU(), 0.1),
        "nothing in the modules": (images, [], 0.1),
        "is not a Module": (images, [*model.stn.fc_loc[0].parameters()], 0.1),
        "theta is not finite before the step: leave out": (images * math.nan, model.stn, 0.1),
    }
    for message, arguments in refused.items():
        with pytest.raises((TypeError, ValueError), match=message), limit_motion(model.stn.theta, *arguments):
            raise AssertionError("the step was taken")
    for before, after in ((EYE, EYE), (EYE[None], EYE.expand(2, 2, 3))):
        with pytest.raises(ValueError, match="theta is .* but should be"):
            motion(before, after, 60)


def test_a_layer_that_was_left_out_of_the_modules_is_said():
    """Without it no step of the others is short enough, and they would stay as they are for ever."""
    torch.manual_seed(0)
    model = ours()
    images, labels = next(batches(1))
    descend(model, optimizer := torch.optim.SGD(model.parameters(), lr=10.0), images, labels)
    with pytest.raises(ValueError, match="the region moves by .* pixels with the modules' step taken back"):
        with limit_motion(model.stn.theta, images, (model.stn.localization, model.stn.fc_loc[0])):
            optimizer.step()


def test_the_recipe_of_the_modules_docstring_steers():
    recipe = [line[4:] for line in stn.__doc__.splitlines() if line.startswith("    ")]
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    images = torch.rand(20, 3, 64, 96)
    names = vars(stn) | {"classifier": classifier, "images": images}
    exec("\n".join(recipe[:5]), names)
    before = copy.deepcopy(names["model"].state_dict())
    F.cross_entropy(names["model"](images), torch.arange(20) % 10).backward()
    exec("\n".join(recipe[5:]), names)
    moved = (names["transformer"].fc_loc[-1].bias.detach() - before["0.fc_loc.2.bias"]).abs().max()
    assert moved == pytest.approx(1e-5, rel=1e-2) and names["schedule"].steps == 1
