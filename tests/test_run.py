"""What a run trains, writes and says."""

import copy
import csv
import json
import math
import re
import runpy
import subprocess
import sys
import time
import urllib.request

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from conftest import ROOT, read_metrics, result, run
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import common
import stn


def test_each_script_pins_its_own_cell_of_the_table(monkeypatch):
    def pinned(name, mean, std, make_optimizer, epochs, fill=0.0):
        optimizer = make_optimizer([torch.nn.Parameter(torch.zeros(1))])
        return name, mean, std, fill, type(optimizer).__name__, optimizer.defaults["lr"], epochs, optimizer.defaults

    called = []
    monkeypatch.setattr(common, "run_experiment", lambda *args, **kwargs: called.append(pinned(*args, **kwargs)))
    for number in range(1, 8):
        runpy.run_path(str(ROOT / f"classification_experiment_{number}.py"))
    assert [row[1:7] for row in called] == [
        (0.1307, 0.3081, 0.0, "SGD", 0.01, 100),
        (0, 1, 0.0, "SGD", 0.01, 100),
        (0, 1, 0.0, "Adam", 0.0001, 150),
        (0.1307, 0.3081, -0.1307 / 0.3081, "SGD", 0.01, 100),
        (0, 0.3081, 0.0, "SGD", 0.01, 100),
        (0.1307, 1, 0.0, "SGD", 0.01, 100),
        (0.1307, 0.3081, 0.0, "Adam", 0.0001, 150),
    ]
    assert [row[0] for row in called] == [f"classification_experiment_{number}" for number in range(1, 8)]
    assert not any(row[7].get("momentum") or row[7]["weight_decay"] for row in called)


def test_a_script_runs_from_a_shell_without_a_network(tmp_path):
    command = [sys.executable, ROOT / "classification_experiment_4.py", "--limit=384", "--epochs=1", "--dataset=mnist"]
    command += ["--seed=3", "--digits=embedded", f"--log-dir={tmp_path}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    folder = tmp_path / "classification_experiment_4_mnist_seed3_limit384"
    assert ended.returncode == 0, ended.stderr
    assert f"files: {folder}, curves: tensorboard --logdir {tmp_path} --port 7010" in ended.stdout
    run_json = json.loads((folder / "run.json").read_text())
    assert run_json["fill"] == -0.1307 / 0.3081 and run_json["optimizer"] == "SGD(lr=0.01)" and run_json["seed"] == 3
    assert run_json["torch"] == torch.__version__ and run_json["digits"] == "embedded" and run_json["device"]
    assert torch.load(folder / "weights_001.pt", weights_only=True)["stn.fc_loc.0.weight"].shape == (32, 90)


def test_a_run_writes_what_it_says(whole_run):
    files = {re.sub(r"tfevents\..*", "tfevents", path.name) for path in whole_run.folder.iterdir()}
    weights = {f"weights_{epoch:03}.pt" for epoch in (0, 5, 7)}
    assert (
        files == {"events.out.tfevents", "metrics.csv", "progress.gif", "checkpoint.pt", "run.json", ".lock"} | weights
    )
    metrics, run_json = read_metrics(whole_run.folder), json.loads((whole_run.folder / "run.json").read_text())
    assert metrics["epoch"].tolist() == [1, 2, 3, 4, 5, 6, 7]
    best = metrics["test/accuracy"].argmax()
    assert run_json["best_accuracy"] == metrics["test/accuracy"][best] and run_json["best_epoch"] == best + 1
    assert run_json["last_accuracy"] == metrics["test/accuracy"][-1] and run_json["epoch"] == 7
    assert run_json["collapsed"] is run_json["lost_solution"] is None
    assert len(re.findall("^epoch ", whole_run.out, re.MULTILINE)) == 7
    assert f"best accuracy {run_json['best_accuracy']:.4g}, best epoch {best + 1}" in whole_run.out


def test_test_figures_are_those_of_the_saved_weights_over_all_test_images(whole_run):
    _, (images, labels), _ = common.load_canvases("cluttered", "nowhere", "embedded", 384)
    model = stn.STNClassifier()
    model.load_state_dict(torch.load(whole_run.folder / "weights_007.pt", weights_only=True))
    model.eval()
    with torch.no_grad():
        batch = (images.float() - 0.1307) / 0.3081
        logits, theta = model(batch), model.stn.theta(batch)
    last = read_metrics(whole_run.folder)[-1]
    assert last["test/loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert last["test/accuracy"] == pytest.approx(100 * (logits.argmax(1) == labels).double().mean().item())
    assert last["stn/scale"] == pytest.approx(stn.scale(theta).item(), rel=1e-5)
    assert last["stn/inside"] == pytest.approx(stn.inside(theta).item(), rel=1e-5)


def test_train_loss_is_the_mean_over_images_and_training_is_the_plain_loop():
    """Also where the last batch is smaller and with the weights in channels_last. In float64, not from the identity.

    In float32 rounding may pick another pixel where a point is sampled between two, or another maximum in a pool: its
    gradient jumps there, and at the identity, where training starts, some points lie exactly on such places.
    """
    torch.manual_seed(0)
    images, labels = torch.randint(256, (400, 1, 60, 60), dtype=torch.uint8), torch.randint(10, (400,))
    plain = stn.STNClassifier().double()
    torch.nn.init.normal_(plain.stn.fc_loc[-1].weight, std=0.05)
    fast = copy.deepcopy(plain).to(memory_format=torch.channels_last)

    def to_batch(images):
        return (images.double() / 255 - 0.1307) / 0.3081

    torch.manual_seed(2)
    optimizer = torch.optim.SGD(fast.parameters(), lr=0.01)
    loss = common.train(fast, optimizer, images, labels, to_batch, "")

    torch.manual_seed(2)
    plain.train()
    order, losses = torch.randperm(400), []
    for index in order.split(64):
        each = torch.nn.functional.cross_entropy(plain(to_batch(images[index])), labels[index], reduction="none")
        gradients = torch.autograd.grad(each.mean(), list(plain.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(plain.parameters(), gradients, strict=True):
                parameter -= 0.01 * gradient
        losses += each.tolist()
    assert loss == pytest.approx(sum(losses) / 400, rel=1e-6)
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
    seen = common.normalize(images, 255, 0.1307, 0.3081), (images.double() / 255 - 0.1307) / 0.3081
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


def test_tensorboard_reads_what_metrics_csv_holds(whole_run):
    events = EventAccumulator(str(whole_run.folder)).Reload()
    metrics = read_metrics(whole_run.folder)
    assert set(events.Tags()["scalars"]) == set(common.TAGS) == set(metrics.dtype.names[1:])
    for tag in common.TAGS:
        assert [event.step for event in events.Scalars(tag)] == metrics["epoch"].tolist()
        assert np.array_equal([event.value for event in events.Scalars(tag)], metrics[tag].astype(np.float32))
    assert [image.step for image in events.Images("progress")] == [0, 5, 7]
    text = events.Tensors("run/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "|digits|embedded|" in text and f"|torch|{torch.__version__}|" in text and "|std|0.3081|" in text


def test_a_tensorboard_server_answers_with_the_tags_and_the_points(whole_run):
    command = [sys.executable, "-m", "tensorboard.main", f"--logdir={whole_run.folder.parent}", "--port=0"]
    fetch = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        url = next(match[0] for line in server.stderr if (match := re.search(r"http://\S+:\d+/", line)))
        until, folder, metrics = time.monotonic() + 60, whole_run.folder.name, read_metrics(whole_run.folder)
        while (tags := json.load(fetch(url + "data/plugin/scalars/tags"))) == {} and time.monotonic() < until:
            time.sleep(0.2)  # it reads the folder after it has begun to answer
        assert set(tags) == {folder} and set(tags[folder]) == set(common.TAGS)
        for tag in common.TAGS:
            points = json.load(fetch(f"{url}data/plugin/scalars/scalars?run={folder}&tag={tag}"))
            assert [step for _, step, _ in points] == metrics["epoch"].tolist()
            assert [value for *_, value in points] == pytest.approx(metrics[tag], rel=1e-6)
    finally:
        server.terminate()
        server.communicate()


def test_the_gif_shows_every_figure_for_half_a_second_in_a_loop(whole_run):
    path = whole_run.folder / "progress.gif"
    frames = imageio.imread(path)
    assert len(frames) == 3 and frames.shape[2] <= 1500
    assert not np.array_equal(frames[0], frames[1]) and not np.array_equal(frames[1], frames[2])
    with Image.open(path) as gif:
        assert gif.info["duration"] == 500 and gif.info["loop"] == 0
    events = EventAccumulator(str(whole_run.folder)).Reload()
    pictures = [imageio.imread(image.encoded_image_string) for image in events.Images("progress")]
    assert np.array_equal(frames, pictures)  # few enough colours to be the same in a GIF


def test_a_gif_of_31_frames_stays_under_2_mb(tmp_path):
    _, (images, _), _ = common.load_canvases("cluttered", "nowhere", "embedded", 384)
    torch.manual_seed(0)
    model, frames = stn.STNClassifier(), []
    for epoch in range(31):
        torch.nn.init.normal_(model.stn.fc_loc[-1].weight, std=0.02 * epoch)  # wilder than training
        frames.append(common.draw_figure(model, images, lambda x: x.float(), 0, 1, f"epoch {epoch}"))
    common.write_gif(tmp_path / "progress.gif", frames)
    assert len(imageio.imread(tmp_path / "progress.gif")) == 31
    assert (tmp_path / "progress.gif").stat().st_size < 2e6


def test_outlines_are_theta_applied_to_the_corners_in_pixels():
    eye = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    quarter_turn = torch.tensor([[0.0, -1, 0], [1, 0, 0]])
    half_size_right_and_down = torch.tensor([[0.5, 0, 0.5], [0, 0.5, 0.25]])
    diamond = math.sqrt(0.5) * torch.tensor([[math.cos(0.25 * math.pi), -math.sin(0.25 * math.pi), 0]] * 2)
    diamond[1] = math.sqrt(0.5) * torch.tensor([math.sin(0.25 * math.pi), math.cos(0.25 * math.pi), 0])
    corners = common.outlines(torch.stack([eye, quarter_turn, half_size_right_and_down, diamond]), 60)
    assert corners[0].tolist() == [[0, 0], [60, 0], [60, 60], [0, 60]]
    assert corners[1].tolist() == [[60, 0], [60, 60], [0, 60], [0, 0]]
    assert corners[2].tolist() == [[30, 22.5], [60, 22.5], [60, 52.5], [30, 52.5]]
    assert torch.allclose(corners[3], torch.tensor([[30.0, 0], [60, 30], [30, 60], [0, 30]]), atol=1e-4)


def outline_pixels(theta, size):
    """Where the figure of 64 black images that are all sampled with `theta` is orange."""
    model = stn.STNClassifier(in_size=size)
    model.stn.fc_loc[-1].bias.data = torch.tensor(theta)
    figure = common.draw_figure(model, torch.zeros(64, 1, size, size, dtype=torch.uint8), lambda x: x.float(), 0, 1, "")
    return (figure[..., 0] > 200) & (figure[..., 2] < 50)


@pytest.mark.parametrize("size, pad, zoom", [(60, 0, 1), (28, 2, 2)])
def test_the_figure_draws_outlines_where_they_are_and_clips_them_to_their_tiles(size, pad, zoom):
    left, top = 2 * common.MARGIN + common.PANEL, common.HEAD
    rows, columns = np.nonzero(outline_pixels([0.5, 0, 0, 0, 0.5, 0], size))
    first = (columns < left + 60) & (rows < top + 60)  # the first tile
    half = size * zoom / 4
    for found, start in ((columns[first], left), (rows[first], top)):
        assert abs(found.min() - (start + pad + half)) <= 2 and abs(found.max() - (start + pad + 3 * half)) <= 2
    assert first.sum() * 64 == len(rows)  # and the same in every tile

    shifted = outline_pixels([0.5, 0, 1, 0, 0.5, 0], size)  # its right half is beyond the right edge
    rows, columns = np.nonzero(shifted)
    assert len(rows) > 0 and not shifted[:, left + common.PANEL :].any()
    inside = (columns - left) % 61
    assert inside.min() >= pad + 3 * half - 2 and inside.max() < pad + size * zoom


def test_the_title_says_which_digits(log_dir, monkeypatch):
    def print_titles():
        draw = common.draw_figure
        monkeypatch.setattr(common, "draw_figure", lambda *args: print("title:", args[-1]) or draw(*args))

    ended = run(log_dir, "--limit=384", "--epochs=1", before=print_titles)
    accuracy = read_metrics(log_dir / "classification_experiment_1_limit384")[0]["test/accuracy"]
    assert [line for line in ended.out.splitlines() if line.startswith("title:")] == [
        "title: classification_experiment_1_limit384 (embedded digits), epoch 0, before training",
        f"title: classification_experiment_1_limit384 (embedded digits), epoch 1, accuracy {accuracy:.2f} %",
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
    monkeypatch.setattr(sys, "argv", ["classification_experiment_1.py", option])
    with pytest.raises(SystemExit) as end:
        common.run_experiment("classification_experiment_1", 0, 1, None, 100)
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


def test_metrics_csv_is_what_a_csv_reader_expects(whole_run):
    with open(whole_run.folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    history = torch.load(whole_run.folder / "checkpoint.pt", weights_only=True)["history"]
    assert [{key: float(value) for key, value in row.items()} for row in rows] == history
