"""Networks that are not this project's, with the two lines and without, and the loop that everybody writes."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import common
import stn
from assets import elsewhere, records, speed

EYE = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
NAMES = ["tutorial, Adam", "tutorial, SGD", "normalized", "shared", "resnet18"]  # the sixth has the fifth's network


@pytest.fixture(scope="module")
def digits():
    """The first embedded digits, uint8 (64, 28, 28), and their labels."""
    (images, labels), _, _ = common.load_digits("nowhere", "embedded")
    return images[:64], labels[:64]


def small(setting, **given):
    """The setting with four steps on few images, and a row after each second one."""
    return replace(setting, **{"batch_size": 8, "steps": 4, "every": 2} | given)


def images_of(setting, digits):
    """A set to train on, and to test on, of 24 digits of the setting's kind."""
    images = torch.from_numpy(digits[0][:24])[:, None]
    if setting.images == "coloured":
        images, _ = elsewhere.make_images(digits[0][:24], seed=0)
    return images, torch.from_numpy(digits[1][:24])


# --------------------------------------------------------------------------------------------------------------- images


def test_the_square_that_an_image_is_said_to_hold_has_the_digit_in_it_and_all_sizes_and_places(digits):
    images, theta = elsewhere.make_images(np.concatenate([digits[0]] * 16), seed=0)
    assert images.shape == (1024, 3, 64, 96) and images.dtype == torch.uint8
    grid = F.affine_grid(theta[:64], [64, 3, 28, 28], align_corners=False)
    found = F.grid_sample(images[:64].float(), grid, align_corners=False).mean(1).flatten(1)
    pixels = torch.from_numpy(digits[0]).float().flatten(1)
    likeness = torch.corrcoef(torch.cat([found, pixels]))[:64, 64:]
    assert torch.equal(likeness.argmax(1), torch.arange(64))  # its own digit, and none of the others
    sides = theta[:, [0, 1], [0, 1]] * torch.tensor([96, 64])
    assert torch.allclose(sides[:, 0], sides[:, 1]) and not theta[:, [0, 1], [1, 0]].any()
    assert 20 <= sides.min() < 20.5 and 43.5 < sides.max() <= 44
    corners = theta[:, :, 2].abs() + theta[:, [0, 1], [0, 1]]
    assert 0.99 < corners.max() <= 1 + 1e-6 and theta[:, :, 2].mean(0).abs().max() < 0.05 and stn.spread(theta) > 0.3


# ------------------------------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize("setting", elsewhere.SETTINGS[:5], ids=NAMES)
def test_every_network_starts_as_the_identity_and_leaky_takes_every_relu_of_its_localization_net(setting, digits):
    torch.manual_seed(0)
    model = setting.make_network()
    images = images_of(setting, digits)[0][:4] / 255
    assert torch.equal(model.theta(images), EYE.expand(4, 2, 3))
    assert torch.allclose(model(images).exp().sum(1), torch.ones(4), atol=1e-5) and model(images).shape == (4, 10)
    model.eval()
    shown = F.interpolate(model.backbone(images), model.out_size, mode="bilinear", align_corners=False)
    assert torch.allclose(model(images), model.classifier(shown), atol=1e-4)
    classifier = str(model.classifier)
    elsewhere.make_leaky(model.localization)
    assert not any(isinstance(module, nn.ReLU) for module in model.localization.modules())
    slopes = {module.negative_slope for module in model.localization.modules() if isinstance(module, nn.LeakyReLU)}
    assert slopes == {0.1} and str(model.classifier) == classifier


# ------------------------------------------------------------------------------------------------------------- training


def noting(setting):
    """The setting, and a list that the network it makes goes into."""
    made = []
    return replace(setting, make_network=lambda: made.append(setting.make_network()) or made[-1]), made


def large_steps(parameters):
    return torch.optim.SGD(parameters, lr=0.5)


@pytest.mark.parametrize("setting", [elsewhere.SETTINGS[1], elsewhere.SETTINGS[2]], ids=NAMES[1:3])
def test_with_neither_line_training_is_the_textbooks_to_the_last_bit(setting, digits):
    setting, made = noting(small(setting, make_optimizer=large_steps))
    images, labels = images_of(setting, digits)
    found = elsewhere.train(setting, "neither", 3, (images, labels), (images, labels))
    torch.manual_seed(3)
    model = setting.make_network()
    optimizer = setting.make_optimizer(model.parameters())
    for count in (24, 8):  # images in the first epoch, and those that are left of four steps
        for index in torch.randperm(24)[:count].split(8):
            loss = F.nll_loss(model((images[index] / 255 - setting.mean) / setting.std), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert all(torch.equal(value, made[0].state_dict()[name]) for name, value in model.state_dict().items())
    known = {"network": setting.network, "optimizer": setting.optimizer, "images": setting.images, "seed": 3}
    known |= {"lines": "neither", "rate": None, "pixels": None}
    assert all(row | known == row for row in found) and [row["step"] for row in found] == [2, 4]

    batch = (images / 255 - setting.mean) / setting.std
    theta, right = model.eval().theta(batch), model(batch).argmax(1) == labels
    measured = 100 * right.float().mean(), stn.scale(theta), stn.inside(theta), stn.spread(theta)
    names = "accuracy", "scale", "inside", "spread"
    assert [found[-1][name] for name in names] == pytest.approx([value.item() for value in measured], rel=1e-4)


@pytest.mark.parametrize("setting", elsewhere.SETTINGS[:5], ids=NAMES)
def test_with_both_lines_no_step_goes_further_than_the_limit_and_no_unit_can_die(setting, digits, monkeypatch):
    setting, made = noting(small(setting, make_optimizer=large_steps, every=1))
    monkeypatch.setattr(common, "DRIFT_EVERY", 1)
    found = elsewhere.train(setting, "both", 0, images_of(setting, digits), images_of(setting, digits))
    assert max(row["drift"] for row in found) < 0.01 and {row["pixels"] for row in found} == {0.1}
    assert not any(isinstance(module, nn.ReLU) for module in made[0].localization.modules())


@pytest.mark.parametrize("lines", ["leaky", "leaky, steered"])
def test_drift_is_that_of_the_first_images_over_windows_and_is_steered(digits, monkeypatch, lines):
    """Windows of two steps, a row each; steered, the localization net's rate begins with a hundredth of its ceiling."""
    setting, made = noting(small(elsewhere.SETTINGS[3]))
    train_set = images_of(setting, digits)
    followed, thetas = (train_set[0][:64] / 255 - setting.mean) / setting.std, []
    monkeypatch.setattr(common, "DRIFT_EVERY", 2)
    predict = stn.predict_in_eval_mode
    monkeypatch.setattr(elsewhere, "test", lambda *_: thetas.append(predict(made[0].theta, followed)) or {})
    found = elsewhere.train(setting, lines, 0, train_set, train_set)
    drifts = [stn.drift(*pair).item() for pair in ((EYE.expand(24, 2, 3), thetas[0]), thetas)]
    assert [row["drift"] for row in found] == pytest.approx(drifts, rel=1e-5) and drifts[1] > 0
    assert [row["rate"] for row in found] == ([1e-5] * 2 if lines == "leaky, steered" else [None] * 2)
    assert not any(isinstance(module, nn.ReLU) for module in made[0].localization.modules())
    assert any(isinstance(module, nn.ReLU) for module in made[0].backbone.modules())


def test_runs_that_the_file_has_are_not_made_again(tmp_path, monkeypatch):
    made = []

    def train(setting, lines, seed, *sets):
        made.append((setting.network, lines, seed))
        names = {"network": setting.network, "optimizer": setting.optimizer, "lines": lines, "seed": seed}
        return [names | {"step": step, "accuracy": 12.3456789, "drift": 0.1} for step in (1, 2)]

    monkeypatch.setattr(elsewhere, "train", train)
    monkeypatch.setattr(elsewhere, "LOADERS", {"plain": lambda data_dir: (), "coloured": lambda data_dir: ()})
    path = tmp_path / "elsewhere.csv"
    older = {"network": "normalized", "optimizer": "Adam 0.001", "lines": "both", "seed": 0, "step": 1}
    path.write_bytes(records.format_table([older, older | {"seed": 9}]))
    arguments = {"only": "normalized", "data_dir": "nowhere", "path": path}
    elsewhere.add_runs(1, **arguments)
    elsewhere.add_runs(2, **arguments)
    assert made == [("normalized", lines, seed) for seed in (0, 1) for lines in elsewhere.LINES]
    older, *found = records.read_table(path)
    assert older["seed"] == 9 and len(found) == 24  # of the other, made before there was drift, nothing is left
    assert found[0]["accuracy"] == 12.3457


# ---------------------------------------------------------------------------------------------------------------- speed


def test_any_experiments_and_the_loop_that_everybody_writes_are_timed_in_turn(monkeypatch, tmp_path):
    """The rows of another device stay."""
    load, path = common.load_images, tmp_path / "speed.csv"
    monkeypatch.setattr(speed, "WORKERS", 0)
    monkeypatch.setattr(common, "load_images", lambda dataset, *_: load(dataset, "nowhere", "embedded", 384))
    path.write_bytes(records.format_table([{"device": "cuda", "epoch": 1}, {"device": "cpu", "epoch": 9}]))
    started = time.perf_counter()
    speed.write_speed([36, 30], 2, 384, "cpu", "nowhere", tmp_path)
    seconds = time.perf_counter() - started
    other, *written = records.read_table(path)
    loops = ("everybody's", 36), ("this project's", 36), ("this project's", 30)
    timed = [(row["loop"], row["experiment"], row["epoch"]) for row in written]
    assert timed == [(*loop, epoch) for epoch in (1, 2) for loop in loops] and other["device"] == "cuda"
    steps = [row["seconds_a_step"] for row in written]  # of 6 an epoch
    assert min(steps) > 0 and 6 * sum(steps) < seconds
