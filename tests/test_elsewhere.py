"""Networks that are not this project's, with the two lines and without, and the loop that everybody writes."""

import copy
import math
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, experiment
from made_up import rows
from torch import nn

import common
import stn
from assets import elsewhere, records, speed, tables

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


def test_labels_go_round_with_the_digits_and_the_two_sets_differ(monkeypatch):
    embedded = common.load_digits("nowhere", "embedded")
    few = [(images[:5], labels[:5]) for images, labels in embedded[:2]]
    monkeypatch.setattr(common, "load_digits", lambda data_dir: (*few, "embedded"))
    sets = elsewhere.load_coloured("nowhere", (12, 7))
    for (images, labels), (digits, wanted), count, seed in zip(sets, few, (12, 7), (0, 1), strict=True):
        index = np.arange(count) % 5
        assert labels.tolist() == wanted[index].tolist()
        assert torch.equal(images, elsewhere.make_images(digits[index], seed)[0])
    (images, labels), _ = elsewhere.load_plain("nowhere")
    assert np.array_equal(images[:, 0], few[0][0]) and np.array_equal(labels, few[0][1])


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
    before = copy.deepcopy(model)
    elsewhere.make_leaky(model.localization)
    for old, new in zip(before.localization.modules(), model.localization.modules(), strict=True):
        assert type(new) is (nn.LeakyReLU if isinstance(old, nn.ReLU) else type(old))
        assert getattr(new, "negative_slope", 0.1) == 0.1
    assert str(model.classifier) == str(before.classifier)
    assert all(torch.equal(value, before.state_dict()[name]) for name, value in model.state_dict().items())


def test_the_tutorials_net_has_the_tutorials_parameters():
    model = elsewhere.make_tutorial_net()
    shapes = [tuple(parameter.shape) for parameter in model.parameters() if parameter.dim() > 1]
    assert shapes[:4] == [(8, 1, 7, 7), (10, 8, 5, 5), (32, 90), (6, 32)]  # the localization net
    assert shapes[4:] == [(10, 1, 5, 5), (20, 10, 5, 5), (50, 320), (10, 50)]


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
    assert [(row["rate"], row["pixels"]) for row in found] == [(None, None)] * 2


@pytest.mark.parametrize("setting", elsewhere.SETTINGS[:5], ids=NAMES)
def test_with_both_lines_no_step_goes_further_than_the_limit_and_no_unit_can_die(setting, digits, monkeypatch):
    setting, made = noting(small(setting, make_optimizer=large_steps, every=1))
    limit, steps = stn.limit_motion, []

    @contextmanager
    def limited(*arguments):
        with limit(*arguments) as step:
            yield step
        steps.append(step)

    monkeypatch.setattr(stn, "limit_motion", limited)
    found = elsewhere.train(setting, "both", 0, images_of(setting, digits), images_of(setting, digits))
    assert len(steps) == 4 and max(step.motion for step in steps) <= 0.1 + 1e-6
    assert min(step.kept for step in steps) < 1 and {row["pixels"] for row in found} == {0.1}
    assert not any(isinstance(module, nn.ReLU) for module in made[0].localization.modules())


def test_the_rows_are_what_the_network_does(digits):
    """Accuracy, scale, inside and spread of the test images, the step, and what the row's run is known by."""
    setting, made = noting(small(elsewhere.SETTINGS[0]))
    train_set = images_of(setting, digits)
    found = elsewhere.train(setting, "leaky", 7, train_set, train_set)
    batch = (train_set[0] / 255 - 0.1307) / 0.3081
    model = made[0].eval()
    theta, right = model.theta(batch), model(batch).argmax(1) == train_set[1]
    known = {"network": "tutorial", "optimizer": "Adam 0.001", "lines": "leaky", "seed": 7, "images": "plain"}
    assert found[-1] | known == found[-1]
    assert found[-1]["accuracy"] == pytest.approx(100 * right.float().mean().item(), rel=1e-5)
    assert found[-1]["scale"] == pytest.approx(stn.scale(theta).item(), rel=1e-5)
    assert found[-1]["inside"] == pytest.approx(stn.inside(theta).item(), rel=1e-5)
    assert found[-1]["spread"] == pytest.approx(stn.spread(theta).item(), rel=1e-4, abs=1e-7)
    assert [each["step"] for each in found] == [2, 4]


@pytest.mark.parametrize("lines", ["leaky", "leaky, steered"])
def test_drift_is_that_of_the_first_images_over_windows_and_is_steered(digits, monkeypatch, lines):
    """Windows of two steps, a row each; steered, the localization net's rate begins with a hundredth of its ceiling."""
    setting, made = noting(small(elsewhere.SETTINGS[3]))
    train_set = images_of(setting, digits)
    followed, thetas = (train_set[0][:64] / 255 - setting.mean) / setting.std, []
    monkeypatch.setattr(elsewhere, "WINDOW", 2)
    predict = stn.predict_in_eval_mode
    monkeypatch.setattr(elsewhere, "test", lambda *_: thetas.append(predict(made[0].theta, followed)) or {})
    found = elsewhere.train(setting, lines, 0, train_set, train_set)
    drifts = [stn.drift(*pair).item() for pair in ((EYE.expand(24, 2, 3), thetas[0]), thetas)]
    assert [row["drift"] for row in found] == pytest.approx(drifts, rel=1e-5) and drifts[1] > 0
    assert [row["rate"] for row in found] == ([1e-5] * 2 if lines == "leaky, steered" else [None] * 2)
    assert not any(isinstance(module, nn.ReLU) for module in made[0].localization.modules())
    assert any(isinstance(module, nn.ReLU) for module in made[0].backbone.modules())


def test_runs_that_the_file_has_are_not_made_again(digits, tmp_path, monkeypatch):
    made = []

    def train(setting, lines, seed, *sets):
        made.append((setting.network, lines, seed))
        names = {"network": setting.network, "optimizer": setting.optimizer, "lines": lines, "seed": seed}
        pixels = elsewhere.LIMIT if lines == "both" else None
        return [names | {"pixels": pixels, "step": step, "accuracy": 12.3456789, "drift": 0.1} for step in (1, 2)]

    monkeypatch.setattr(elsewhere, "train", train)
    monkeypatch.setattr(elsewhere, "LOADERS", {"plain": lambda data_dir: (), "coloured": lambda data_dir: ()})
    path = tmp_path / "elsewhere.csv"
    older = {"network": "normalized", "optimizer": "Adam 0.001", "lines": "both", "seed": 0, "step": 1}
    path.write_bytes(records.format_table([older, older | {"seed": 9}]))
    arguments = {"only": "normalized", "data_dir": "nowhere", "path": path}
    elsewhere.add_runs(1, lines=["neither", "both"], **arguments)
    elsewhere.add_runs(2, lines=["neither", "both"], **arguments)
    assert made == [("normalized", lines, seed) for seed in (0, 1) for lines in ("neither", "both")]
    older, *found = records.read_table(path)
    assert older["seed"] == 9 and len(found) == 8  # of the other, made before there was drift, nothing is left
    assert found[0]["accuracy"] == 12.3457 and [row["pixels"] for row in found[:4:2]] == [None, 0.1]


# ---------------------------------------------------------------------------------------------------------------- speed


@pytest.fixture
def canvases(monkeypatch):
    monkeypatch.setattr(speed, "WORKERS", 0)
    (images, labels), test_set, *_ = common.load_images("cluttered", "nowhere", "embedded", 384)
    return (images[:128], labels[:128]), test_set


def test_the_loop_that_everybody_writes_trains_as_the_textbook_does(canvases):
    chosen = experiment(mean=0.1307, std=0.3081)
    network = speed.make_reference(chosen)
    assert network.model.stn.localization[3].weight.is_contiguous()
    torch.manual_seed(5)
    loss = speed.reference_epoch(chosen, network, speed.make_loader(*canvases[0]))
    torch.manual_seed(0)
    model, losses = stn.STNClassifier(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    torch.manual_seed(5)
    for images, labels in speed.make_loader(*canvases[0]):
        optimizer.zero_grad()
        losses.append(F.cross_entropy(model((images - 0.1307) / 0.3081), labels))
        losses[-1].backward()
        optimizer.step()
    assert loss == pytest.approx(torch.stack(losses).mean().item(), rel=1e-6) and len(losses) == 2
    assert all(torch.equal(value, network.model.state_dict()[name]) for name, value in model.state_dict().items())


def test_any_experiments_are_timed_on_their_own_images_and_the_loop_that_everybody_writes_on_the_first(monkeypatch):
    load = common.load_images
    monkeypatch.setattr(speed, "WORKERS", 0)
    monkeypatch.setattr(common, "load_images", lambda dataset, *_: load(dataset, "nowhere", "embedded", 384))
    experiments = [common.read_script(ROOT / f"classification_experiment_{number}.py")[0] for number in (21, 30, 3)]
    loops = speed.make_loops(experiments, "nowhere", 384, "cpu")
    assert [loop for loop, _, _ in loops] == ["everybody's", *["this project's"] * 3]
    assert [experiment for _, experiment, _ in loops] == [experiments[0], *experiments]
    assert [train.func for _, _, train in loops] == [speed.reference_epoch, *[common.train] * 3]
    assert [train.args[0] for _, _, train in loops[1:]] == experiments
    assert [train.args[2].shape[-1] for _, _, train in loops[1:]] == [60, 120, 60]


def test_each_is_timed_in_turn_and_the_rows_of_another_device_stay(monkeypatch, tmp_path):
    clock, turns = [0.0], []

    def takes(number):
        turns.append(number)
        clock[0] += 10 * number

    def make_loops(experiments, data_dir, limit, device):
        numbers = [int(experiment.name.rpartition("_")[2]) for experiment in experiments]
        return [("loop", each, lambda n=n: takes(n)) for each, n in zip(experiments, numbers, strict=True)]

    monkeypatch.setattr(speed.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(speed, "make_loops", make_loops)
    for experiments, rounds, device in (([3], 1, "cuda"), ([10], 1, "cpu"), ([3, 7], 2, "cpu")):
        turns.clear()
        speed.write_speed(experiments, rounds, 384, device, "nowhere", tmp_path)
    assert turns == [3, 7] * 3  # the first round is the warm-up
    written = records.read_table(tmp_path / "speed.csv")
    timed = [(row["device"], row["experiment"], row["epoch"], row["seconds"]) for row in written]
    assert timed == [("cuda", 3, 1, 30), ("cpu", 3, 1, 30), ("cpu", 7, 1, 70), ("cpu", 3, 2, 30), ("cpu", 7, 2, 70)]


# --------------------------------------------------------------------------------------------------------------- tables


def end(lines, seed, accuracy, inside, spread, step=20, **given):
    row = {"network": "net", "images": "coloured", "optimizer": "Adam 0.001", "lines": lines, "seed": seed}
    return row | {"step": step, "accuracy": accuracy, "scale": 0.8, "inside": inside, "spread": spread} | given


def test_the_table_of_other_networks_has_the_last_row_of_each_seed():
    made = [end("both", 1, 90.0, 0.9, 0.3, drift=0.05), end("both", 0, 10.0, 0.9, 0.001, step=10)]
    made += [end("both", 0, 91.26, 0.95, 0.2, drift=0.04)]
    made += [end("neither", 0, 11.0, 0.04, 0.3, scale=5), end("neither", 1, 40.0, 0.9, 0.009)]
    made += [end("neither", 2, 80.0, 0.05, 0.01)]
    made += [end("neither", 0, 98.0, 0.9, 0.001, network="tutorial", images="plain")]
    made += [end("neither", 1, 9.8, 0, math.nan, network="tutorial", images="plain")]
    start = ["net", "coloured", "Adam 0.001"]
    assert rows(tables.elsewhere(made)) == [
        [*start, "neither", "20", "11.0, 40.0, 80.0", "5.00, 0.80, 0.80", "0.04, 0.90, 0.05"]
        + ["0.300, 0.009, 0.010", "-, -, -", "2 of 3"],
        [*start, "both", "20", "91.3, 90.0", "0.80, 0.80", "0.95, 0.90", "0.200, 0.300", "0.040, 0.050", "0 of 2"],
        ["tutorial", "plain", "Adam 0.001", "neither", "20", "98.0, 9.8", "0.80, 0.80", "0.90, 0.00"]
        + ["0.001, nan", "-, -", "1 of 2"],
    ]


def test_the_table_of_speed_compares_the_loops_round_by_round():
    def timed(loop, experiment, *seconds):
        known = {"loop": loop, "experiment": experiment, "title": "made up"}
        return [known | {"device": "cpu", "epoch": epoch, "seconds": s} for epoch, s in enumerate(seconds, start=1)]

    made = timed("everybody's", 1, 50, 70, 60) + timed("this project's", 1, 25, 70, 30)
    made += [row | {"device": "cuda", "seconds": 2} for row in made[:2]]
    assert rows(tables.speed(made)) == [
        ["cpu", "everybody's", "1: made up", "60.0", "1.00"],
        ["cpu", "this project's", "1: made up", "30.0", "0.50"],
        ["cuda", "everybody's", "1: made up", "2.0", "1.00"],
    ]


def test_what_has_gone_wrong_depends_on_whether_digits_have_to_be_followed():
    for images, inside, scale, spread, wrong in (
        ("plain", 0.9, 1.25, 0.0, False),
        ("plain", 0.9, 1.26, 0.3, True),
        ("plain", 0.04, 1.0, 0.3, True),
        ("coloured", 0.9, 1.5, 0.3, True),
        ("coloured", 0.9, 1.2, 0.3, False),
        ("coloured", 0.9, 1.0, 0.009, True),
        ("coloured", 0.04, 1.0, 0.3, True),
    ):
        row = {"images": images, "inside": inside, "scale": scale, "spread": spread}
        assert tables.went_wrong(row) == wrong, row
