"""What tests the law: the sharpness of a loss, the hand-over to SGD, and the loss along a shift of the region."""

import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, run
from scipy.sparse.linalg import ArpackNoConvergence
from torch import nn

sys.path.insert(0, str(ROOT / "assets"))
import collect
import hand_over
import sharpness
import smoothing
from rebuild import load_weights, rebuild

import common
import stn

SCRIPTS = [(sharpness, ()), (hand_over, ("1",)), (smoothing, ("1",))]  # and what comes after the folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of experiment 10, whose localization net has a learning rate of its own, on 384 plain digits."""
    log_dir = tmp_path_factory.mktemp("law") / "runs"
    log_dir.mkdir()
    ended = run(log_dir, "--dataset=mnist", "--limit=384", "--epochs=1", number=10)
    assert ended.code == 0, ended.err
    return log_dir / "classification_experiment_10_mnist_limit384"


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Calls a script with a command line, its tables in a folder of their own; returns its last words, None if well."""

    def called(script, *arguments):
        monkeypatch.setattr(script, "ASSETS", tmp_path)
        monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, arguments)])
        try:
            script.main()
        except SystemExit as end:
            return end.code

    monkeypatch.setattr(sharpness, "IMAGES", 64)
    monkeypatch.setattr(hand_over, "RATES", ((0.003, 0.001), (0, 0.01)))
    monkeypatch.setattr(hand_over, "STEPS", (0, 1, 9))
    monkeypatch.setattr(smoothing, "SHIFTS", (-0.5, 0, 0.5))
    return called


# ------------------------------------------------------------------------------------------------------------ sharpness


def quadratic(values):
    """Gradient of a quadratic whose Hessian has these eigenvalues."""
    q, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((len(values), len(values))))
    return lambda weights: q @ (values * (q.T @ weights))


@pytest.mark.parametrize("step", sharpness.STEPS)
@pytest.mark.parametrize(
    "values, largest, in_size",
    [
        (np.linspace(0, 100, 50), 100, 100),
        (np.r_[40, -90, np.linspace(-5, 5, 48)], 40, -90),
        (np.linspace(-3, -1, 50), -1, -3),
        (np.zeros(50), 0, 0),
    ],
)
def test_the_sharpness_of_a_quadratic_is_the_largest_eigenvalue(values, largest, in_size, step):
    found = sharpness.eigenvalues(quadratic(values), np.ones(50), step)
    assert found[:2] == pytest.approx((largest, in_size), rel=0.01)
    assert found[2] < 0.03


def test_the_sharpness_of_a_network_is_that_of_autograds_hessian():
    torch.manual_seed(0)
    stn_part = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.Tanh())
    model = nn.Sequential(OrderedDict(stn=stn_part, classifier=nn.Linear(6, 3))).double()
    images, labels = 3 * torch.randn(300, 4, dtype=torch.double), torch.randint(3, (300,))
    names, parameters = zip(*stn_part.named_parameters(), strict=True)
    weights = torch.cat([parameter.detach().flatten() for parameter in parameters])

    def loss(vector):
        parts = vector.split([parameter.numel() for parameter in parameters])
        own = {f"stn.{n}": part.view_as(p) for n, p, part in zip(names, parameters, parts, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, own, images), labels)

    values = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, weights))
    gradient = sharpness.loss_gradient(model, images, labels, to_batch=lambda batch: batch)
    largest, _, residual, vector = sharpness.eigenvalues(gradient, weights.numpy(), 0.001)
    assert largest == pytest.approx(values.max().item(), rel=0.01) and residual < 0.03
    curvature = sharpness.curvature(lambda place: loss(torch.from_numpy(place)).item(), weights.numpy(), 0.001 * vector)
    assert curvature == pytest.approx(largest, rel=0.01)


def test_the_curvature_holds_across_a_kink():
    shift = np.array([0.0, 0.5])
    assert sharpness.curvature(lambda weights: abs(weights[1]), np.zeros(2), shift) == pytest.approx(4)
    assert sharpness.curvature(lambda weights: abs(weights[1]), np.ones(2), shift) == pytest.approx(0)


def test_the_residual_tells_where_the_gradient_jumps_within_a_step():
    def jumping(weights):
        return np.sign(np.sin(1e5 * weights))

    residual = sharpness.eigenvalues(jumping, np.arange(50.0), 0.001)[2]
    assert not residual < 0.5  # it is large, or nan where ARPACK finds nothing: rounding decides


def test_what_arpack_does_not_find_is_nan(monkeypatch):
    def give_up(*_, **__):
        raise ArpackNoConvergence("no convergence", np.empty(0), np.empty((50, 0)))

    monkeypatch.setattr(sharpness, "eigsh", give_up)
    *values, _ = sharpness.eigenvalues(quadratic(np.ones(50)), np.ones(50), 0.01)
    assert np.isnan(values).all()


def test_the_rows_of_a_run_are_those_of_its_saved_weights_and_are_not_doubled(folder, call, tmp_path):
    other = dict.fromkeys(sharpness.COLUMNS, 1) | {"dataset": "mnist", "digits": "full", "experiment": 11}
    sharpness.add_rows(tmp_path / "sharpness.csv", sharpness.COLUMNS, [other])
    assert call(sharpness, folder) is None
    before = (tmp_path / "sharpness.csv").read_text()
    assert call(sharpness, folder, "--every", "2") is None
    assert (tmp_path / "sharpness.csv").read_text() == before

    *rows, last = collect.read_table(tmp_path / "sharpness.csv")
    assert last == other
    assert [(row["epoch"], row["step"]) for row in rows] == [(0, 0.001), (0, 0.01), (1, 0.001), (1, 0.01)]
    assert all(row["lr"] == 0.001 and row["experiment"] == 10 for row in rows)
    assert all(row["sharpness"] <= abs(row["largest_in_size"]) for row in rows)

    _, model, _, to_batch = rebuild(folder)
    load_weights(folder, 1, model)
    (images, labels), *_ = common.load_canvases("mnist", "data", "embedded", 384)
    figures = common.test(model, images[:64], labels[:64], to_batch)
    assert rows[-1]["loss"] == pytest.approx(figures["test/loss"], rel=1e-5)
    for name in ("scale", "inside", "spread"):
        assert rows[-1][name] == pytest.approx(figures[f"stn/{name}"], rel=1e-5)


# ------------------------------------------------------------------------------------------------------------ hand-over


def test_a_hand_over_begins_at_the_saved_weights_and_a_frozen_transformer_stays(folder, call, tmp_path):
    assert call(hand_over, folder, "1", "--shuffles", "2") is None
    before = (tmp_path / "hand_over.csv").read_text()
    assert call(hand_over, folder, "1", "--shuffles", "2") is None
    assert (tmp_path / "hand_over.csv").read_text() == before
    rows = collect.read_table(tmp_path / "hand_over.csv")
    assert len(rows) == 2 * 2 * 3

    _, model, _, to_batch = rebuild(folder)
    load_weights(folder, 1, model)
    _, (images, labels), _ = common.load_canvases("mnist", "data", "embedded", 384)
    saved = common.test(model, images, labels, to_batch)
    for row in rows:
        moves = {tag: row[tag] != pytest.approx(saved[tag], 1e-5) for tag in hand_over.FIGURES}
        assert not any(moves.values()) or row["step"] > 0
        if row["step"] == 9:
            assert moves["test/loss"] and moves["stn/spread"] == (row["rate"] > 0)
        if row["rate"] == 0:
            assert not any(moves[tag] for tag in ("stn/scale", "stn/inside", "stn/spread"))
    assert len({row["test/loss"] for row in rows if row["step"] == 9}) == 4  # rates and shuffles differ


def test_the_steps_of_a_hand_over_are_those_of_a_run(folder):
    _, model, _, to_batch = rebuild(folder)
    load_weights(folder, 1, model)
    train_set, *_ = common.load_canvases("mnist", "data", "embedded", 384)
    torch.manual_seed(5)
    steps = hand_over.descend(model, (0.01, 0.01), *train_set, to_batch)
    for _ in range(6):
        next(steps)

    _, other, _, to_batch = rebuild(folder)
    load_weights(folder, 1, other)
    torch.manual_seed(5)
    common.train(other, torch.optim.SGD(other.parameters(), lr=0.01), *train_set, to_batch)
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), other.parameters(), strict=True))


# ------------------------------------------------------------------------------------------------------------ smoothing


@pytest.fixture
def shifted():
    """A network in float64, a transformer to sample with, digits on black, their labels, and the identity."""
    torch.manual_seed(0)
    model = stn.STNClassifier(28).double().eval()
    _, (images, labels), _ = common.load_canvases("mnist", "data", "embedded", 384)
    theta = torch.eye(2, 3, dtype=torch.double).repeat(len(images), 1, 1)
    return model, stn.SpatialTransformer(28), images.double() / 255, labels, theta


def test_a_shift_of_one_is_one_pixel_to_the_right(shifted):
    model, sampler, images, labels, theta = shifted
    moved = images.roll(-1, dims=3)
    at_one, _ = smoothing.shifted_losses(*shifted, 1.0)
    at_none, _ = smoothing.shifted_losses(model, sampler, moved, labels, theta, 0.0)
    assert torch.allclose(at_one, at_none, rtol=1e-5)
    assert not torch.allclose(at_one, smoothing.shifted_losses(*shifted, -1.0)[0], rtol=1e-5)


def test_the_gradient_is_the_slope_of_the_loss(shifted):
    _, gradient = smoothing.shifted_losses(*shifted, 0.25)
    high, low = (smoothing.shifted_losses(*shifted, 0.25 + by)[0] for by in (1e-6, -1e-6))
    assert torch.allclose(gradient, (high - low) / 2e-6, rtol=1e-3, atol=1e-6)


def test_the_rows_have_the_change_over_one_pixel_with_and_without_smoothing(folder, call, tmp_path):
    assert call(smoothing, folder, "1") is None
    before = (tmp_path / "smoothing.csv").read_text()
    assert call(smoothing, folder, "1") is None
    assert (tmp_path / "smoothing.csv").read_text() == before

    rows = collect.read_table(tmp_path / "smoothing.csv")
    assert len(rows) == 2 * (64 + smoothing.DRAWN * (len(smoothing.SHIFTS) - 1))
    at = {(row["smoothed"], row["image"], row["shift"]): row for row in rows}
    for smoothed in (0, 1):
        for image in {row["image"] for row in rows if row["shift"] != 0}:
            losses = [at[smoothed, image, shift]["loss"] for shift in (-0.5, 0.5)]
            difference = at[smoothed, image, 0]["difference"]
            assert difference == pytest.approx(losses[1] - losses[0], abs=1e-4)
    assert sum(at[0, image, 0]["loss"] != at[1, image, 0]["loss"] for image in range(64)) == 64


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("script, more", SCRIPTS)
def test_wrong_arguments_are_a_usage_line(script, more, call, folder):
    for arguments in (
        (),
        (folder, *more, "--slow"),
        (folder, *more, "--every", "0"),
        (folder, *more, "--shuffles", "0"),
    ):
        words = call(script, *arguments)
        assert words.startswith(f"usage: python assets/{script.__name__}.py RUN_FOLDER") and "\n" not in words


@pytest.mark.parametrize("script, more", SCRIPTS)
def test_a_folder_without_a_run_is_refused_in_one_line(script, more, call, tmp_path):
    words = call(script, tmp_path / "none", *more)
    assert words.startswith(f"{script.__name__}.py: error: {tmp_path / 'none'} holds no run") and "\n" not in words
    assert not list(tmp_path.glob("*.csv"))


@pytest.mark.parametrize("script", [hand_over, smoothing])
def test_an_epoch_without_weights_is_refused_in_one_line(script, call, folder):
    words = call(script, folder, "7")
    assert words.startswith(f"{script.__name__}.py: error: {folder} has no weights of epoch 7") and "\n" not in words


def test_a_run_without_weights_is_refused_in_one_line(call, folder, tmp_path):
    lost = tmp_path / folder.name
    lost.mkdir()
    for name in ("run.json", "metrics.csv"):
        (lost / name).write_bytes((folder / name).read_bytes())
    words = call(sharpness, lost)
    assert words.startswith(f"sharpness.py: error: {lost} has no weights") and "\n" not in words
