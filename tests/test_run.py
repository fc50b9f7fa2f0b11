"""What a run trains, writes and says."""

import copy
import csv
import json
import math
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
import warnings
from contextlib import contextmanager
from types import SimpleNamespace
from urllib.parse import urlencode

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from conftest import ROOT, before_the_checkpoint, collapse, experiment, files, pretend_gpu, read_metrics, result, run
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import common
import stn

SETTINGS = ("experiment", "variant", "mean", "std", "fill", "optimizer", "transformer", "max_grad_norm", "batch_size")
SETTINGS += ("dataset", "digits", "limit", "seed", "max_motion", "scheduler", "penalty")
NAMES = ("scale", "inside", "spread", "motion", "active")
TAGS = {*(f"stn/{name}" for name in NAMES), "stn/motion_max", "stn/limited", "train/loss", "test/loss", "test/accuracy"}
TAGS |= {"train/grad_norm", "train/grad_norm_max", "train/clipped", "time/epoch_seconds"}


def test_a_script_runs_from_a_shell_without_a_network(tmp_path):
    command = [sys.executable, ROOT / "classification_experiment_4.py", "--limit=384", "--epochs=1", "--dataset=mnist"]
    command += ["--seed=3", "--digits=embedded", f"--log-dir={tmp_path}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    folder = tmp_path / "classification_experiment_4_mnist_seed3_limit384"
    assert ended.returncode == 0, ended.stderr
    assert f"files: {folder}, curves: tensorboard --logdir {tmp_path} {common.TENSORBOARD_OPTIONS}\n" in ended.stdout
    run_json = json.loads((folder / "run.json").read_text())
    assert run_json["fill"] == -0.1307 / 0.3081 and run_json["optimizer"] == "SGD(lr=0.01)" and run_json["seed"] == 3
    assert run_json["torch"] == torch.__version__ and run_json["digits"] == "embedded" and run_json["device"]
    assert torch.load(folder / "weights" / "001.pt", weights_only=True)["stn.fc_loc.0.weight"].shape == (32, 90)


def test_a_run_writes_what_it_says(whole_run):
    paths = (str(path.relative_to(whole_run.folder)) for path in whole_run.folder.rglob("*") if path.is_file())
    written = {re.sub(r"tfevents\..*", "tfevents", path) for path in paths}
    series = {path.format(epoch) for epoch in ("000", "005", "007") for path in ("figures/{}.png", "weights/{}.pt")}
    single = {"events.out.tfevents", "metrics.csv", "progress.gif", "checkpoint.pt", "run.json", ".lock"}
    assert written == single | series
    metrics, run_json = read_metrics(whole_run.folder), json.loads((whole_run.folder / "run.json").read_text())
    assert metrics["epoch"].tolist() == [1, 2, 3, 4, 5, 6, 7]
    best = metrics["test/accuracy"].argmax()
    assert run_json["best_accuracy"] == metrics["test/accuracy"][best] and run_json["best_epoch"] == best + 1
    assert run_json["last_accuracy"] == metrics["test/accuracy"][-1] and run_json["epoch"] == 7
    assert run_json["collapsed"] is run_json["lost_solution"] is run_json["failed"] is None
    assert len(re.findall("^epoch ", whole_run.out, re.MULTILINE)) == 7
    assert f"best accuracy {run_json['best_accuracy']:.4g}, best epoch {best + 1}" in whole_run.out


def test_test_figures_are_those_of_the_saved_weights_over_all_test_images(whole_run):
    _, (images, labels), _ = common.load_canvases("cluttered", "nowhere", "embedded", 384)
    model = stn.STNClassifier()
    model.load_state_dict(common.load_state(whole_run.folder / "weights" / "007.pt"))
    model.eval()
    with torch.no_grad():
        batch = (images.float() / 255 - 0.1307) / 0.3081
        logits, theta = model(batch), model.stn.theta(batch)
    last = read_metrics(whole_run.folder)[-1]
    assert last["test/loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert last["test/accuracy"] == pytest.approx(100 * (logits.argmax(1) == labels).double().mean().item())
    assert last["stn/scale"] == pytest.approx(stn.scale(theta).item(), rel=1e-5)
    assert last["stn/inside"] == pytest.approx(stn.inside(theta).item(), rel=1e-5)
    assert last["stn/spread"] == pytest.approx(stn.spread(theta).item(), rel=1e-3) and last["stn/spread"] > 1e-4


@pytest.mark.parametrize("bound", [None, 1.7])
def test_training_is_the_plain_loop_and_its_figures_are_those_of_the_steps(bound):
    """Also where the last batch is smaller and with the weights in channels_last. In float64, not from the identity.

    In float32 rounding may pick another pixel where a point is sampled between two, or another maximum in a pool: its
    gradient jumps there, and at the identity, where training starts, some points lie exactly on such places.
    """
    torch.manual_seed(0)
    images, labels = torch.randint(256, (400, 1, 60, 60), dtype=torch.uint8), torch.randint(10, (400,))
    plain = stn.STNClassifier().double()
    torch.nn.init.normal_(plain.stn.fc_loc[-1].weight, std=0.05)
    fast = copy.deepcopy(plain).to(memory_format=torch.channels_last)

    class InFloat64(common.Experiment):
        def normalize(self, images):
            return to_batch(images)

    def to_batch(images):
        return (images.double() / 255 - 0.1307) / 0.3081

    torch.manual_seed(2)
    network = common.Network(fast, torch.optim.SGD(fast.parameters(), lr=0.01), None)
    row = common.train(InFloat64(**vars(experiment(max_grad_norm=bound))), network, images, labels)

    torch.manual_seed(2)
    plain.train()
    order, losses, norms = torch.randperm(400), [], []
    for index in order.split(64):
        each = torch.nn.functional.cross_entropy(plain(to_batch(images[index])), labels[index], reduction="none")
        gradients = torch.autograd.grad(each.mean(), list(plain.parameters()))
        norms.append(math.sqrt(sum((gradient**2).sum().item() for gradient in gradients)))
        shrunk = min(1, bound / (norms[-1] + 1e-6)) if bound else 1  # as torch documents it
        with torch.no_grad():
            for parameter, gradient in zip(plain.parameters(), gradients, strict=True):
                parameter -= 0.01 * shrunk * gradient
        losses += each.tolist()
    assert {"train/loss", "train/grad_norm", "train/grad_norm_max", "train/clipped"} < row.keys()
    assert row["train/loss"] == pytest.approx(sum(losses) / 400, rel=1e-6)
    assert row["train/grad_norm"] == pytest.approx(sorted(norms)[3], rel=1e-6)  # of seven
    assert row["train/grad_norm_max"] == pytest.approx(max(norms), rel=1e-6) and sorted(norms)[3] < max(norms)
    assert row["train/clipped"] == (sum(norm > bound for norm in norms) / 7 if bound else 0)
    assert bound is None or 0 < row["train/clipped"] < 1, norms
    for a, b in zip(fast.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)


def test_values_and_gradients_are_those_of_the_plain_network():
    """The weights in channels_last and the normalization in place, against a network that has neither, in float64."""
    torch.manual_seed(0)
    images, labels = torch.randint(256, (64, 1, 60, 60), dtype=torch.uint8), torch.randint(10, (64,))
    fast = stn.STNClassifier(fill=-0.4)
    torch.nn.init.normal_(fast.stn.fc_loc[-1].weight, std=0.05)
    plain = copy.deepcopy(fast).double().eval()
    fast.to(memory_format=torch.channels_last).eval()
    seen = experiment().normalize(images), (images.double() / 255 - 0.1307) / 0.3081
    logits = fast(seen[0]), plain(seen[1])
    assert torch.allclose(logits[0].double(), logits[1], atol=1e-5)
    gradients = [
        torch.autograd.grad(torch.nn.functional.cross_entropy(out, labels), list(model.parameters()))
        for out, model in zip(logits, (fast, plain), strict=True)
    ]
    for a, b in zip(*gradients, strict=True):
        assert b.abs().max() > 0 and (a - b).abs().max() < 1e-4 * b.abs().max()


def test_the_same_seed_gives_the_same_numbers_and_another_gives_others(whole_run, log_dir):
    assert run(log_dir, "--limit=384", "--epochs=7").code == 0
    assert result(log_dir / "classification_experiment_1_limit384") == result(whole_run.folder)
    assert run(log_dir, "--limit=384", "--epochs=1", "--seed=1").code == 0
    other = result(log_dir / "classification_experiment_1_seed1_limit384")[0]
    assert other[0] == result(whole_run.folder)[0][0] and other[1] != result(whole_run.folder)[0][1]


def test_the_line_of_an_epoch_shows_the_figures(whole_run):
    lines = [line for line in whole_run.out.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 7 and max(map(len, lines)) < 132
    shown = "train/loss", "test/loss", "test/accuracy", *(f"stn/{name}" for name in NAMES)
    for line, row in zip(lines, read_metrics(whole_run.folder), strict=True):
        for tag in shown:
            assert pytest.approx(row[tag], rel=0.05) in map(float, re.findall(r"[\d.]+(?:e-?\d+)?", line)), tag
    without = {"epoch": 3, "time/epoch_seconds": 1.0} | dict.fromkeys(shown, 0.5) | {"stn/active": None}
    assert common.describe_epoch(without).endswith("motion 0.5  1 s")


def test_tensorboard_reads_what_metrics_csv_holds(whole_run):
    events = EventAccumulator(str(whole_run.folder)).Reload()
    metrics = read_metrics(whole_run.folder)
    assert set(metrics.dtype.names) == {"epoch", *TAGS}
    assert set(events.Tags()["scalars"]) == {*TAGS, "outcome/best_accuracy"}
    for tag in TAGS:
        assert [event.step for event in events.Scalars(tag)] == metrics["epoch"].tolist()
        assert np.array_equal([event.value for event in events.Scalars(tag)], metrics[tag].astype(np.float32))
    best = np.maximum.accumulate(metrics["test/accuracy"])
    assert np.array_equal([event.value for event in events.Scalars("outcome/best_accuracy")], best.astype(np.float32))
    assert [image.step for image in events.Images("progress")] == [0, 5, 7]
    text = events.Tensors("run/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "|digits|embedded|" in text and f"|torch|{torch.__version__}|" in text and "|std|0.3081|" in text


@contextmanager
def tensorboard(log_dir, *options):
    """A TensorBoard server; yields what fetches a path of it, parsed from JSON, until `until` holds of it."""
    command = [sys.executable, "-m", "tensorboard.main", f"--logdir={log_dir}", *options, "--port=0"]
    fetch = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        url = next(match[0] for line in server.stderr if (match := re.search(r"http://\S+:\d+/", line)))

        def get(path, until=lambda _: True, **query):
            deadline = time.monotonic() + 60  # it reads the folder after it has begun to answer
            while True:
                with fetch(f"{url}data/plugin/{path}?{urlencode(query)}") as answer:
                    answer = json.load(answer)
                if until(answer):
                    return answer
                assert time.monotonic() < deadline, answer
                time.sleep(0.2)

        yield get
    finally:
        server.terminate()
        server.communicate()


@pytest.fixture(scope="module")
def many_runs(whole_run, tmp_path_factory):
    """A log folder with runs of different settings and fates; the names of their folders by what became of them."""
    log_dir = tmp_path_factory.mktemp("many") / "my runs"
    log_dir.mkdir()
    (log_dir / whole_run.folder.name).symlink_to(whole_run.folder)
    with pytest.MonkeyPatch.context() as patch:

        def ended(*options, number, before=lambda: None):
            return run(log_dir, "--limit=384", "--dataset=mnist", *options, number=number, before=before)

        def every_epoch():
            patch.setattr(common, "FIGURE_EVERY", 1)

        assert ended("--epochs=11", number=11, before=every_epoch).code == 0
        assert ended("--epochs=4", number=10, before=lambda: collapse(patch, 3)).code == 0
        killed = ended("--epochs=3", number=3, before=lambda: before_the_checkpoint(patch, 2))
        assert killed.code == -signal.SIGKILL and ended("--epochs=3", number=3).code == 0
        assert ended("--epochs=1", number=9).code == 0 and ended("--epochs=9", number=9).code == 0
    names = {"whole": whole_run.folder.name}
    for what, number in (("of 12 figures", 11), ("failed", 10), ("killed", 3), ("gone on", 9)):
        names[what] = f"classification_experiment_{number}_mnist_limit384"
    assert {path.name for path in log_dir.iterdir()} == set(names.values())
    return SimpleNamespace(log_dir=log_dir, names=names)


@pytest.fixture(scope="module")
def server(many_runs):
    """A TensorBoard server of `many_runs`, started as the runs say."""
    with tensorboard(many_runs.log_dir, *common.TENSORBOARD_OPTIONS.split()) as get:
        get("scalars/tags", until=lambda tags: set(tags) == set(many_runs.names.values()))
        yield get


def test_a_tensorboard_server_answers_with_the_tags_and_the_points(many_runs, server):
    tags = server("scalars/tags")
    for what, name in many_runs.names.items():
        outcome = ["outcome/best_accuracy", *["outcome/failed_in_epoch"] * (what == "failed")]
        assert set(tags[name]) == {*TAGS, *outcome}
        metrics = read_metrics(many_runs.log_dir / name)
        for tag in TAGS:
            points = server("scalars/scalars", run=name, tag=tag)
            assert [step for _, step, _ in points] == metrics["epoch"].tolist()
            assert [value for *_, value in points] == pytest.approx(metrics[tag], rel=1e-6)


def test_the_printed_options_let_tensorboard_show_every_figure(many_runs, server):
    name = many_runs.names["of 12 figures"]
    figures = [imageio.imread(path) for path in sorted((many_runs.log_dir / name / "figures").glob("*.png"))]
    shown = server("images/images", run=name, tag="progress", sample=0, until=lambda images: len(images) > 11)
    assert [image["step"] for image in shown] == [*range(12)] and len(figures) == 12
    with tensorboard(many_runs.log_dir) as get:
        tags = get("images/tags", until=lambda tags: name in tags)
        assert "progress" in tags[name]
        few = get("images/images", run=name, tag="progress", sample=0, until=lambda images: len(images) > 9)
        assert len(few) == 10  # which is why


def test_tensorboard_lists_each_run_once_with_its_settings_and_its_outcome(many_runs, server):
    """Also one that was killed and one that went on with more epochs: its HParams tab, over HTTP."""
    experiment = server("hparams/experiment", request=json.dumps({"experimentName": ""}))
    names = {info["name"] for info in experiment["hparamInfos"]}
    metrics = {info["name"]["tag"] for info in experiment["metricInfos"]}
    assert metrics == {"outcome/best_accuracy", "outcome/failed_in_epoch", "stn/scale"}
    wanted = {"startIndex": 0, "sliceSize": 100, "colParams": [], "experimentName": ""}
    wanted["allowedStatuses"] = ["STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING", "STATUS_UNKNOWN"]
    groups = server("hparams/session_groups", request=json.dumps(wanted))["sessionGroups"]
    sessions = {group["sessions"][0]["name"]: group for group in groups}
    assert len(groups) == len(sessions) and all(len(group["sessions"]) == 1 for group in groups)
    assert set(sessions) == set(many_runs.names.values())
    for what, name in many_runs.names.items():
        run_json = json.loads((many_runs.log_dir / name / "run.json").read_text())
        shown = sessions[name]["hparams"]
        settings = {key: run_json[key] for key in ("title", *SETTINGS)}
        assert names >= set(shown) == set(settings)
        assert shown == {key: "none" if value is None else value for key, value in settings.items()}
        values = {metric["name"]["tag"]: metric["value"] for metric in sessions[name]["metricValues"]}
        assert values["outcome/best_accuracy"] == pytest.approx(run_json["best_accuracy"], rel=1e-6)
        assert values["stn/scale"] == pytest.approx(read_metrics(many_runs.log_dir / name)["stn/scale"][-1], rel=1e-6)
        assert values.get("outcome/failed_in_epoch") == (3 if what == "failed" else None)
    gone_on = read_metrics(many_runs.log_dir / many_runs.names["gone on"])["test/accuracy"]
    assert len(gone_on) == 9 and gone_on.max() > gone_on[0]  # the best is a new one


def test_the_gif_shows_every_figure_for_half_a_second_in_a_loop(whole_run):
    path = whole_run.folder / "progress.gif"
    frames = imageio.imread(path)
    assert len(frames) == 3 and frames.shape[2] <= 1500
    assert not np.array_equal(frames[0], frames[1]) and not np.array_equal(frames[1], frames[2])
    with Image.open(path) as gif:
        assert gif.info["duration"] == 500 and gif.info["loop"] == 0
    events = EventAccumulator(str(whole_run.folder)).Reload()
    pictures = [imageio.imread(image.encoded_image_string) for image in events.Images("progress")]
    files = [imageio.imread(whole_run.folder / "figures" / f"{epoch:03}.png") for epoch in (0, 5, 7)]
    assert np.array_equal(frames, pictures)  # few enough colours to be the same in a GIF
    assert np.array_equal(frames, files)


def test_figures_are_in_the_order_of_their_numbers_and_none_is_ahead(tmp_path):
    folder = common.RunFolder(tmp_path, experiment(), {})
    (tmp_path / "figures").mkdir()
    for epoch in (1000, 995, 5, 0, 1005):
        (tmp_path / "figures" / f"{epoch:03}.png").write_bytes(b"")
    folder.history = [None] * 1004
    assert [path.name for path in folder.figures()] == ["000.png", "005.png", "995.png", "1000.png"]


@pytest.mark.parametrize("count, shown", [(0, 0), (1, 1), (100, 100), (101, 51), (201, 67)])
def test_the_gif_has_at_most_a_hundred_figures_evenly_spaced_and_the_last(tmp_path, count, shown):
    folder = common.RunFolder(tmp_path, experiment(), {})
    (tmp_path / "figures").mkdir()
    for i in range(count):
        (tmp_path / "figures" / f"{5 * i:03}.png").write_bytes(b"")
    folder.history = [None] * 5 * count
    epochs = [int(path.stem) for path in folder.figures()]
    assert len(epochs) == shown <= common.GIF_FRAMES and len(set(np.diff(epochs))) <= 1
    assert epochs[-1:] == [5 * (count - 1)] * (count > 0)


def affine(degrees, scale, x, y):
    """The theta of a region turned by an angle, of a scale, and moved."""
    cosine, sine = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    return torch.tensor([[cosine, -sine, x], [sine, cosine, y]])


THETAS = {
    "the whole image": affine(0, 1, 0, 0),
    "a quarter turn": torch.tensor([[0.0, -1, 0], [1, 0, 0]]),
    "turned, scaled and moved": affine(30, 0.5, -0.2, 0.3),
    "partly outside the image": affine(20, 0.6, 0.9, -0.5),
    "outside the image, within the tile": affine(10, 0.3, 1.5, 1.5),
    "larger than the image": affine(-15, 1.3, 0.1, 0.0),
    "over the tile's four corners": affine(45, 2.5, 0, 0),
    "over the tile's right edge": affine(0, 0.5, 1.9, 0),
    "over the tile's upper left corner": affine(0, 0.5, -1.9, -1.9),
    "beyond the tile": affine(0, 0.5, 4, 0),
    "a line": affine(0, 1, 0, 0) * torch.tensor([[1.0], [0.0]]),
}


def test_outlines_are_theta_applied_to_the_corners_in_pixels():
    thetas = [
        THETAS["the whole image"],
        THETAS["a quarter turn"],
        affine(0, 0.5, 0.5, 0.25),
        affine(45, 0.5**0.5, 0, 0),
    ]
    corners = common.outlines(torch.stack(thetas), 60, 60)
    assert corners[0].tolist() == [[0, 0], [60, 0], [60, 60], [0, 60]]
    assert corners[1].tolist() == [[60, 0], [60, 60], [0, 60], [0, 0]]
    assert corners[2].tolist() == [[30, 22.5], [60, 22.5], [60, 52.5], [30, 52.5]]
    assert torch.allclose(corners[3], torch.tensor([[30.0, 0], [60, 30], [30, 60], [0, 30]]), atol=1e-4)


def draw(size, thetas):
    """The figure of 16 different images, and the images themselves, float (16, size, size), 0 to 1."""
    torch.manual_seed(0)
    model, images = stn.STNClassifier(in_size=size), torch.randint(2, (16, 1, size, size), dtype=torch.uint8)
    model.stn.theta = lambda _: thetas
    return common.draw_figure(experiment(mean=0, std=1), model, 255 * images, ""), images[:, 0].numpy() * 255


def panel(figure, number):
    """The 16 tiles (16, 120, 120, 3) of a panel, and what is between them (True where it is), of the panel."""
    left, top = 9 + number * (483 + 9), 58
    square = figure[top : top + 483, left : left + 483]
    between = np.ones((483, 483), bool)
    tiles = []
    for row in range(4):
        for column in range(4):
            place = slice(121 * row, 121 * row + 120), slice(121 * column, 121 * column + 120)
            tiles.append(square[place])
            between[place] = False
    return np.stack(tiles), square[between]


ORANGE, GREY = (255, 119, 0), (119, 119, 119)  # #ff8000 and #777777 in 16 levels


def is_color(pixels, color):
    return (pixels == color).all(-1)


@pytest.mark.parametrize("size, shown", [(60, 60), (28, 56)])
def test_the_figure_shows_sixteen_images_with_room_around_them_in_the_middle(size, shown):
    """Each in a tile of 120 x 120 pixels, enlarged by a whole factor, with a line of a pixel between the tiles."""
    far = affine(0, 0.5, 4, 0).expand(16, 2, 3)  # no outline is in the way
    figure, images = draw(size, far)
    assert figure.shape == (550, 1485, 3) and figure.dtype == np.uint8
    assert len(np.unique(figure.reshape(-1, 3), axis=0)) <= 17
    for number, side, expected in (
        (0, 120 // size * size, images),
        (1, shown, images),
        (2, 112, images[:, :28, :28] * 0),
    ):
        tiles, between = panel(figure, number)
        pad, zoom = (120 - side) // 2, side // expected.shape[-1]
        inner = tiles[:, pad : pad + side, pad : pad + side]
        assert (inner == expected.repeat(zoom, 1).repeat(zoom, 2)[..., None]).all(), f"panel {number}"
        assert len(np.unique(between)) == 1 and 0 < between.max() < 120
        if number == 1:  # a thin grey line around the image, and nothing else
            line = is_color(tiles, GREY)
            ring = np.ones((120, 120), bool)
            ring[pad : pad + side, pad : pad + side] = False
            assert (line.any(0) <= ring).all() and (line == line[0]).all()
            rows, columns = np.nonzero(line[0])
            for places in (rows, columns):
                assert pad - 2 <= places.min() <= pad - 1 and pad + side <= places.max() <= pad + side + 1
            rest = tiles[:, ring & ~line[0]]
            assert len(np.unique(rest)) == 1


def boundary(corners):
    """Points every quarter of a pixel along a polygon's edges."""
    ends = np.roll(corners, -1, axis=0)
    return np.concatenate(
        [
            a + np.linspace(0, 1, 1 + int(4 * np.hypot(*(b - a))))[:, None] * (b - a)
            for a, b in zip(corners, ends, strict=True)
        ]
    )


@pytest.mark.parametrize("size, zoom", [(60, 1), (28, 2)])
def test_the_figure_draws_outlines_where_they_are_and_clips_them_to_their_tiles(size, zoom):
    thetas = torch.stack([*THETAS.values(), *[affine(0, 1, 0, 0)] * 5])
    tiles, between = panel(draw(size, thetas)[0], 1)
    assert not is_color(between, ORANGE).any()
    for number in (0, 2):
        assert not is_color(panel(draw(size, thetas)[0], number)[0], ORANGE).any()
    corners = common.outlines(thetas, size, size).numpy() * zoom + (120 - size * zoom) / 2  # in the tile's pixels
    for name, tile, polygon in zip(THETAS, tiles, corners, strict=False):
        points = boundary(polygon)
        rows, columns = np.nonzero(is_color(tile, ORANGE))
        pixels = np.stack([columns, rows], axis=1) + 0.5  # their centres
        visible = points[((points > 0.5) & (points < 119.5)).all(axis=1)]
        assert (len(visible) == 0) == (name == "beyond the tile") == (len(pixels) == 0), name
        if len(pixels):
            distance = np.linalg.norm(pixels[:, None] - points, axis=-1)
            assert distance.min(axis=1).max() < 2.5, name  # nothing is drawn beside the line, two pixels wide
            distance = np.linalg.norm(pixels[:, None] - visible, axis=-1)
            assert distance.min(axis=0).max() < 1.2, name  # and all of it is drawn, at whole pixels


def test_the_title_says_what_the_experiment_is_and_which_digits(log_dir, monkeypatch):
    def print_titles():
        draw = common.draw_figure
        monkeypatch.setattr(common, "draw_figure", lambda *args: print("title:", args[-1]) or draw(*args))

    ended = run(log_dir, "--limit=384", "--epochs=1", before=print_titles)
    folder = log_dir / "classification_experiment_1_limit384"
    title, accuracy = json.loads((folder / "run.json").read_text())["title"], read_metrics(folder)[0]["test/accuracy"]
    assert [line for line in ended.out.splitlines() if line.startswith("title:")] == [
        f"title: classification_experiment_1_limit384 (embedded digits): {title}, epoch 0, before training",
        f"title: classification_experiment_1_limit384 (embedded digits): {title}, epoch 1, accuracy {accuracy:.2f} %",
    ]


@pytest.mark.parametrize(
    "option, message",
    [
        ("--epochs=0", "argument --epochs: 0 is not from 1 to 9999"),
        ("--epochs=ten", "argument --epochs: invalid int value: 'ten'"),
        ("--limit=100", "argument --limit: 100 is not from 384 to 60000"),
        ("--seed=-1", "argument --seed: -1 is not from 0 to 99999"),
        ("--device=cuda:99", "argument --device: invalid choice: 'cuda:99' (choose from "),
        ("--digits=roman", "argument --digits: invalid choice: 'roman' (choose from "),
        ("--epoch=5", "unrecognized arguments: --epoch=5"),
    ],
)
def test_wrong_arguments_end_in_one_line_and_exit_code_2(monkeypatch, capsys, option, message):
    script = ROOT / "classification_experiment_1.py"
    monkeypatch.setattr(sys, "argv", [script.name, option])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(script), run_name="__main__")
    printed = capsys.readouterr()
    assert end.value.code == 2 and printed.out == ""
    assert printed.err.count("\n") == 1 and f"classification_experiment_1.py: error: {message}" in printed.err


def row(epoch, train_loss=1.0, inside=0.5):
    return {"epoch": epoch, "train/loss": train_loss, "test/accuracy": 50.0 + epoch, "stn/inside": inside}


def test_collapse_is_the_first_epoch_with_less_than_a_twentieth_inside():
    assert common.collapsed([]) is None
    assert common.collapsed([row(1), row(2, inside=0.05)]) is None
    assert common.collapsed([row(1), row(2, inside=0.0), row(3, inside=0.0)]) == 2
    assert common.collapsed([row(1, inside=0.0)]) == 1
    assert common.collapsed([row(1), row(2, inside=0.049)]) == 2
    assert common.collapsed([row(1), row(2, inside=2.3e-6), row(3, inside=2.3e-6)]) == 2  # experiment 2, seed 0
    assert common.collapsed([row(1), row(2, inside=0.0), row(3), row(4, inside=0.0)]) == 2  # it came back meanwhile


def test_a_solution_is_lost_when_the_loss_stays_above_one_and_a_half_times_its_minimum_for_five_epochs():
    def history(*losses):
        return [row(epoch, loss) for epoch, loss in enumerate(losses, start=1)]

    assert common.lost_solution(history(2.0, 1.0, *[1.51] * 4)) is None
    assert common.lost_solution(history(2.0, 1.0, *[1.51] * 4, 1.4, *[1.51] * 4)) is None
    assert common.lost_solution(history(2.0, 1.0, *[1.5] * 9)) is None
    assert common.lost_solution(history(2.0, 1.0, *[1.51] * 5)) == 3
    assert common.lost_solution(history(2.0, 1.0, 1.6, 0.5, *[0.8] * 5, 0.1)) == 5


def test_a_run_fails_in_the_epoch_in_which_it_first_does_either():
    lasts = [row(epoch) for epoch in range(1, 9)]
    assert common.failed([]) is None and common.failed(lasts) is None
    assert common.failed([*lasts, row(9, inside=0.0)]) == 9
    lost = [*lasts, *(row(epoch, 1.6) for epoch in range(9, 14))]
    assert common.failed(lost) == 9 and common.failed(lost[:-1]) is None
    assert common.failed([*lost, row(14, inside=0.0)]) == 9
    assert common.failed([row(1, inside=0.0), *lost[1:]]) == 1


def test_metrics_csv_is_what_a_csv_reader_expects(whole_run):
    with open(whole_run.folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    history = torch.load(whole_run.folder / "checkpoint.pt", weights_only=True)["history"]
    assert [{key: float(value) for key, value in row.items()} for row in rows] == history


# ----------------------------------------------------------------------------------------------------------- settings


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A finished run of experiment 1, of an epoch on plain digits."""
    log_dir = tmp_path_factory.mktemp("begun") / "runs"
    log_dir.mkdir()
    ended = run(log_dir, "--limit=384", "--epochs=1", "--dataset=mnist")
    assert ended.code == 0, ended.err
    return log_dir / "classification_experiment_1_mnist_limit384"


def edit(tmp_path, number, old, new):
    """A folder with an edited copy of a script."""
    text = (ROOT / f"classification_experiment_{number}.py").read_text()
    assert text.count(old) == 1
    (tmp_path / f"classification_experiment_{number}.py").write_text(text.replace(old, new))
    return tmp_path


ALL = "model.parameters(), lr=0.01"


@pytest.mark.parametrize(
    "old, new, was, now",
    [
        (ALL, "model.parameters(), lr=0.02", "optimizer was SGD(lr=0.01)", "is SGD(lr=0.02)"),
        (ALL, f"{ALL}, momentum=0.9, nesterov=True", "was SGD(lr=0.01)", "momentum=0.9, nesterov=True"),
        (ALL, f"{ALL}, maximize=True", "was SGD(lr=0.01)", "maximize=True"),
        (ALL, "model.stn.parameters(), lr=0.01", "was SGD(lr=0.01)", "is SGD(lr=0.01 on stn)"),
        (
            ALL,
            '[{"params": model.stn.parameters(), "lr": 0.001}, {"params": model.classifier.parameters()}], lr=0.01',
            "was SGD(lr=0.01)",
            "is SGD(lr=0.001 on stn; lr=0.01 on classifier)",
        ),
        ("optim.SGD", "optim.Adam", "was SGD(lr=0.01)", "is Adam(lr=0.01)"),
        ("epochs=100", "epochs=100, max_grad_norm=25", "max_grad_norm was None", "is 25"),
        (
            "\nrun_experiment(",
            "\nclass Turned(__import__('stn').SpatialTransformer):\n    pass\n\n\n"
            "run_experiment(\n    transformer=Turned,",
            "transformer was SpatialTransformer",
            "is class Turned(",
        ),
        ("mean=0.1307", "mean=0", "mean was 0.1307", "is 0"),
        ("std=0.3081", "std=1", "std was 0.3081", "is 1"),
        ("epochs=100", "epochs=100, fill=-0.5", "fill was 0.0", "is -0.5"),
    ],
    ids="rate nesterov boolean held rates class clip transformer mean std fill".split(),
)
def test_a_run_begun_with_other_settings_is_refused_in_a_line_with_old_and_new(begun, tmp_path, old, new, was, now):
    kept, root = files(begun), edit(tmp_path, 1, old, new)
    refused = run(begun.parent, "--limit=384", "--epochs=2", "--dataset=mnist", root=root)
    assert refused.code == 1 and refused.out == "" and refused.err.count("\n") == 1, refused.err
    assert str(begun) in refused.err and re.search(f"{re.escape(was)}, .*{re.escape(now)}", refused.err)
    assert "remove it, or choose another --log-dir" in refused.err
    assert files(begun) == kept


@pytest.mark.parametrize(
    "number, old, new, message",
    [
        (
            10,
            '"lr": 0.001',
            '"lr": 0.002',
            "lr=0.001 on stn; lr=0.01 on classifier), is SGD(lr=0.002 on stn; lr=0.01 on",
        ),
        (11, "max_grad_norm=1", "max_grad_norm=2", "max_grad_norm was 1, is 2"),
        (13, ".tanh()", ".tanh().neg()", ".tanh(), is class Squashed"),
    ],
    ids=["rate", "clip", "transformer"],
)
def test_what_a_script_alone_has_is_a_setting_too(log_dir, tmp_path, number, old, new, message):
    """Learning rates of parts, the clip, and what the transformer's class does, its name being the same."""
    options = "--limit=384", "--epochs=1", "--dataset=mnist"
    assert run(log_dir, *options, number=number).code == 0
    refused = run(log_dir, *options, number=number, root=edit(tmp_path, number, old, new))
    assert refused.code == 1 and refused.err.count("\n") == 1 and message in refused.err


# ------------------------------------------------------------------------------------------ the shell and the machine


def test_the_printed_command_can_be_pasted(tmp_path):
    log_dir = tmp_path / 'my runs, it\'s $HOME & "more"'
    log_dir.mkdir()
    ended = run(log_dir, "--limit=384", "--epochs=1", "--dataset=mnist")
    assert ended.code == 0, ended.err
    files, _, command = ended.out.splitlines()[-1].partition(", curves: ")
    assert shlex.split(command) == ["tensorboard", "--logdir", str(log_dir), *common.TENSORBOARD_OPTIONS.split()]
    assert shlex.split(files) == ["files:", str(log_dir / "classification_experiment_1_mnist_limit384")]


def test_a_run_goes_to_its_end_whoever_reads_what_it_prints(tmp_path):
    """In a shell, with an encoding that cannot show the folder's name."""
    command = f"{shlex.quote(sys.executable)} {shlex.quote(str(ROOT / 'classification_experiment_1.py'))}"
    command += " --limit=384 --epochs=3 --dataset=mnist --digits=embedded --log-dir"
    environment, started = os.environ | {"PYTHONIOENCODING": "ascii"}, {}
    for name, rest in (("Läufe", "2>&-"), ("närrisch", ">&-"), ("kürzer", "| head -n 1")):
        line = ["bash", "-c", f"{command} {name} {rest}; exit ${{PIPESTATUS[0]}}"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started[name] = subprocess.Popen(line, cwd=tmp_path, env=environment, **pipes)
    for name, count in (("Läufe", 6), ("närrisch", 0), ("kürzer", 1)):
        out, err = started[name].communicate()
        assert started[name].returncode == 0 and err == "" and out.count("\n") == count, (name, out, err)
        assert "L\\xe4ufe" in out or name != "Läufe"
        metrics = read_metrics(tmp_path / name / "classification_experiment_1_mnist_limit384")
        assert metrics["epoch"].tolist() == [1, 2, 3], name


def test_a_gpu_that_is_full_later_is_the_same_line_and_what_was_trained_is_kept(log_dir, monkeypatch):
    """The device is the CPU, under the name of a GPU."""

    def full_in_epoch_3():
        pretend_gpu(monkeypatch)
        train = common.train

        def full(*args):
            if torch.initial_seed() == 3:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
            return train(*args)

        monkeypatch.setattr(common, "train", full)

    ended = run(log_dir, "--limit=384", "--epochs=5", "--dataset=mnist", before=full_in_epoch_3)
    assert ended.code == 1 and ended.err.count("\n") == 1, ended.err
    assert "cuda cannot be used: CUDA out of memory" in ended.err and "--device cpu" in ended.err
    assert len(read_metrics(log_dir / "classification_experiment_1_mnist_limit384")) == 2


def test_a_driver_that_is_too_old_is_said_in_a_line_and_the_run_uses_the_cpu(log_dir, monkeypatch):
    message = "CUDA initialization: The NVIDIA driver on your system is too old (found version 9010).\nPlease update it"

    def warn():
        def is_available():
            warnings.warn(message, stacklevel=2)
            return False

        monkeypatch.setattr(torch.cuda, "is_available", is_available)

    ended = run(log_dir, "--limit=384", "--epochs=1", "--dataset=mnist", before=warn)
    assert ended.code == 0 and ended.err.count("\n") == 1
    assert "--device cpu" in ended.err and " ".join(message.split()) in ended.err
