"""What a run writes and says, what TensorBoard shows of it, and which settings make a run another."""

import csv
import json
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from types import SimpleNamespace
from urllib.parse import urlencode

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from conftest import before_the_checkpoint, collapse, files, read_metrics, run, write_script
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import common

PLAIN = "--limit=384", "--dataset=mnist"
NAME = "classification_experiment_1_mnist_limit384"
SETTINGS = ("experiment", "variant", "mean", "std", "fill", "optimizer", "transformer", "max_grad_norm", "batch_size")
SETTINGS += ("dataset", "digits", "limit", "seed", "max_motion", "scheduler", "penalty")
SHOWN = ("scale", "inside", "spread", "motion", "active")
TAGS = {*(f"stn/{name}" for name in SHOWN), "stn/motion_max", "stn/limited", "train/loss", "test/loss", "test/accuracy"}
TAGS |= {"train/grad_norm", "train/grad_norm_max", "train/clipped", "time/epoch_seconds"}


# ------------------------------------------------------------------------------------------------------ files and lines


def test_a_run_writes_what_it_says(whole_run):
    paths = (str(path.relative_to(whole_run.folder)) for path in whole_run.folder.rglob("*") if path.is_file())
    written = {re.sub(r"tfevents\..*", "tfevents", path) for path in paths}
    series = {path.format(epoch) for epoch in ("000", "005", "007") for path in ("figures/{}.png", "weights/{}.pt")}
    assert (
        written == {"events.out.tfevents", "metrics.csv", "progress.gif", "checkpoint.pt", "run.json", ".lock"} | series
    )
    metrics, run_json = read_metrics(whole_run.folder), json.loads((whole_run.folder / "run.json").read_text())
    assert metrics["epoch"].tolist() == [1, 2, 3, 4, 5, 6, 7] and set(metrics.dtype.names) == {"epoch", *TAGS}
    best = metrics["test/accuracy"].argmax()
    assert run_json["best_accuracy"] == metrics["test/accuracy"][best] and run_json["best_epoch"] == best + 1
    assert run_json["last_accuracy"] == metrics["test/accuracy"][-1] and run_json["epoch"] == 7
    assert run_json["collapsed"] is run_json["lost_solution"] is run_json["failed"] is None
    assert run_json["torch"] == torch.__version__ and run_json["digits"] == "embedded" and run_json["device"] == "cpu"
    assert f"best accuracy {run_json['best_accuracy']:.4g}, best epoch {best + 1}" in whole_run.out
    with open(whole_run.folder / "metrics.csv", newline="") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert rows == torch.load(whole_run.folder / "checkpoint.pt", weights_only=True)["history"]


def test_the_line_of_an_epoch_shows_the_figures_that_were_measured(whole_run):
    lines = [line for line in whole_run.out.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 7 and max(map(len, lines)) < 132
    shown = "train/loss", "test/loss", "test/accuracy", *(f"stn/{name}" for name in SHOWN)
    for line, row in zip(lines, read_metrics(whole_run.folder), strict=True):
        for tag in shown:
            assert pytest.approx(row[tag], rel=0.05) in map(float, re.findall(r"[\d.]+(?:e-?\d+)?", line)), tag
    without = {"epoch": 3, "time/epoch_seconds": 1.0} | dict.fromkeys(shown, 0.5) | {"stn/active": None}
    assert common.describe_epoch(without).endswith("motion 0.5  1 s")


def test_the_title_says_what_the_experiment_is_and_which_digits(log_dir, monkeypatch):
    def print_titles():
        draw = common.draw_figure
        monkeypatch.setattr(common, "draw_figure", lambda *args: print("title:", args[-1]) or draw(*args))

    ended = run(log_dir, *PLAIN, "--epochs=1", before=print_titles)
    title = json.loads((log_dir / NAME / "run.json").read_text())["title"]
    accuracy = read_metrics(log_dir / NAME)[0]["test/accuracy"]
    assert [line for line in ended.out.splitlines() if line.startswith("title:")] == [
        f"title: {NAME} (embedded digits): {title}, epoch 0, before training",
        f"title: {NAME} (embedded digits): {title}, epoch 1, accuracy {accuracy:.2f} %",
    ]


@pytest.mark.parametrize("lost", [["metrics.csv"], ["metrics.csv", "run.json"]])
def test_the_tables_of_a_finished_run_are_written_again_where_they_are_lost(short_run, log_dir, lost):
    folder = shutil.copytree(short_run.folder, log_dir / NAME)
    before = files(folder)
    for name in lost:
        (folder / name).unlink()
    ended = run(log_dir, *PLAIN, "--epochs=2")
    after = files(folder)
    assert ended.code == 0 and "finished: epoch 2" in ended.out and after.keys() == before.keys()
    assert all(after[name][1] == before[name][1] for name in before)


@pytest.mark.parametrize("damage", ["cut", "changed", "numpy"])
def test_a_checkpoint_that_cannot_be_loaded_is_named_and_kept(short_run, log_dir, damage):
    path = shutil.copytree(short_run.folder, log_dir / NAME) / "checkpoint.pt"
    torch.save(common.load_state(path) | {"epoch": np.float64(1)}, log_dir / "numpy.pt")  # as older versions wrote it
    kept = path.read_bytes()
    cut, changed = kept[:-400], kept[:3000] + b"x" * 64 + kept[3064:]
    path.write_bytes({"cut": cut, "changed": changed, "numpy": (log_dir / "numpy.pt").read_bytes()}[damage])
    before = path.read_bytes()
    ended = run(log_dir, *PLAIN, "--epochs=3")
    assert ended.code == 1 and ended.err.count("\n") == 1 and path.read_bytes() == before
    assert f"{path} is of another format" in ended.err and "remove the folder to start afresh" in ended.err


# ---------------------------------------------------------------------------------------------------------- TensorBoard


def test_tensorboard_reads_what_metrics_csv_holds(whole_run):
    events = EventAccumulator(str(whole_run.folder)).Reload()
    metrics = read_metrics(whole_run.folder)
    assert set(events.Tags()["scalars"]) == {*TAGS, "outcome/best_accuracy"}
    for tag in TAGS:
        assert [event.step for event in events.Scalars(tag)] == metrics["epoch"].tolist()
        assert np.array_equal([event.value for event in events.Scalars(tag)], metrics[tag].astype(np.float32))
    best = np.maximum.accumulate(metrics["test/accuracy"])
    assert np.array_equal([event.value for event in events.Scalars("outcome/best_accuracy")], best.astype(np.float32))
    for image, epoch in zip(events.Images("progress"), (0, 5, 7), strict=True):
        figure = imageio.imread(whole_run.folder / "figures" / f"{epoch:03}.png")
        assert image.step == epoch and np.array_equal(imageio.imread(image.encoded_image_string), figure)
    text = events.Tensors("run/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "|digits|embedded|" in text and f"|torch|{torch.__version__}|" in text and "|std|0.3081|" in text


@pytest.mark.parametrize("hours", [2, 0])
def test_tensorboard_shows_all_epochs_though_the_clock_went_back(short_run, log_dir, monkeypatch, hours):
    """Twice, and a run that goes on within the second in which it was begun."""
    folder = shutil.copytree(short_run.folder, log_dir / NAME)
    begun = int(next(folder.glob("events*")).name.split(".")[3])
    for epochs in (3, 4):

        def at_another_time(epochs=epochs):
            monkeypatch.setattr(time, "time", lambda: begun - hours * 3600 * epochs)

        assert run(log_dir, *PLAIN, f"--epochs={epochs}", before=at_another_time).code == 0
    events = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in events.Scalars("test/accuracy")] == [1, 2, 3, 4]
    assert len(list(folder.glob("events*"))) == 3


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
def many_runs(short_run, tmp_path_factory):
    """A log folder with runs of different settings and fates; the names of their folders by what became of them."""
    log_dir = tmp_path_factory.mktemp("many") / "my runs"
    log_dir.mkdir()
    shutil.copytree(short_run.folder, log_dir / NAME)
    with pytest.MonkeyPatch.context() as patch:

        def every_epoch():
            patch.setattr(common, "FIGURE_EVERY", 1)

        def ended(epochs, number, before=lambda: None):
            return run(log_dir, *PLAIN, f"--epochs={epochs}", number=number, before=before)

        assert ended(11, 11, every_epoch).code == 0 and ended(4, 10, lambda: collapse(patch, 3)).code == 0
        assert ended(3, 3, lambda: before_the_checkpoint(patch, 2)).code == -signal.SIGKILL and ended(3, 3).code == 0
        assert ended(4, 1).code == 0
    names = {"gone on": NAME}
    for what, number in (("of 12 figures", 11), ("failed", 10), ("killed", 3)):
        names[what] = f"classification_experiment_{number}_mnist_limit384"
    assert {path.name for path in log_dir.iterdir()} == set(names.values())
    return SimpleNamespace(log_dir=log_dir, names=names)


@pytest.fixture(scope="module")
def server(many_runs):
    """A TensorBoard server of `many_runs`, started as the runs say."""
    with tensorboard(many_runs.log_dir, *common.TENSORBOARD_OPTIONS.split()) as get:
        get("scalars/tags", until=lambda tags: set(tags) == set(many_runs.names.values()))
        yield get


def test_a_tensorboard_server_answers_with_the_tags_the_points_and_every_figure(many_runs, server):
    tags = server("scalars/tags")
    for what, name in many_runs.names.items():
        outcome = ["outcome/best_accuracy", *["outcome/failed_in_epoch"] * (what == "failed")]
        assert set(tags[name]) == {*TAGS, *outcome}
        metrics = read_metrics(many_runs.log_dir / name)
        for tag in ("train/loss", "test/accuracy", "stn/scale"):
            points = server("scalars/scalars", run=name, tag=tag)
            assert [step for _, step, _ in points] == metrics["epoch"].tolist()
            assert [value for *_, value in points] == pytest.approx(metrics[tag], rel=1e-6)
    name = many_runs.names["of 12 figures"]  # without the options it shows 10
    shown = server("images/images", run=name, tag="progress", sample=0, until=lambda images: len(images) > 11)
    assert [image["step"] for image in shown] == [*range(12)]


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


# ------------------------------------------------------------------------------------------------------------- settings

OWN = """
from stn import SpatialTransformer


class Base(SpatialTransformer):
    def sample(self, images, theta):
        return super().sample(images, theta * 0.5)  # half


class Own(Base):
    half = 2


run_experiment(
    title="own", mean=0.1307, std=1, epochs=1, transformer=Own, max_grad_norm=1,
    make_optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.01),
    make_scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.9**epoch),
    penalty=lambda theta, weight=0.1: weight * theta.square().mean(),
)
"""
ALL = "model.parameters(), lr=0.01"
RATES = '[{"params": model.stn.parameters(), "lr": 0.001}, {"params": model.classifier.parameters()}], lr=0.01'
CHANGES = {  # of a script, each of which makes its run another: old, new, and what is said of it
    "rate": (ALL, "model.parameters(), lr=0.02", "optimizer was SGD(lr=0.01), is SGD(lr=0.02)"),
    "nesterov": (ALL, f"{ALL}, momentum=0.9, nesterov=True", "is SGD(lr=0.01, momentum=0.9, nesterov=True)"),
    "boolean": (ALL, f"{ALL}, maximize=True", "is SGD(lr=0.01, maximize=True)"),
    "held": (ALL, "model.stn.parameters(), lr=0.01", "is SGD(lr=0.01 on stn)"),
    "rates": (ALL, RATES, "is SGD(lr=0.001 on stn; lr=0.01 on classifier)"),
    "optimizer": ("optim.SGD", "optim.Adam", "optimizer was SGD(lr=0.01), is Adam(lr=0.01)"),
    "clip": ("max_grad_norm=1", "max_grad_norm=25", "max_grad_norm was 1, is 25"),
    "mean": ("mean=0.1307", "mean=0", "mean was 0.1307, is 0"),
    "std": ("std=1", "std=0.3081", "std was 1, is 0.3081"),
    "fill": ("epochs=1,", "epochs=1, fill=-0.5,", "fill was 0.0, is -0.5"),
    "a base of the class": ("theta * 0.5", "theta * 0.25", "transformer was class Own"),
    "a number that the class holds": ("half = 2", "half = 3", "half = 2"),
    "a default of the penalty": ("weight=0.1", "weight=0.2", "penalty was"),
    "a schedule's function": ("0.9**epoch", "0.8**epoch", "scheduler was LambdaLR("),
}


@pytest.fixture(scope="module")
def own_run(tmp_path_factory):
    """A finished run of a script of a user's own, on plain digits; its log folder."""
    path = tmp_path_factory.mktemp("own")
    (path / "runs").mkdir()
    assert run(path / "runs", *PLAIN, root=write_script(path, OWN)).code == 0
    return path / "runs"


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_begun_with_other_settings_is_refused_in_a_line_with_old_and_new(own_run, tmp_path, change):
    (old, new, said), kept = CHANGES[change], files(own_run)
    assert OWN.count(old) == 1
    refused = run(own_run, *PLAIN, "--epochs=2", root=write_script(tmp_path, OWN.replace(old, new)))
    assert refused.code == 1 and refused.out == "" and refused.err.count("\n") == 1, refused.err
    assert f"{own_run / NAME} is another run's (" in refused.err and said in refused.err
    assert "remove it, or choose another --log-dir" in refused.err and files(own_run) == kept


def test_comments_and_whoever_runs_the_script_do_not_make_a_run_another(own_run, tmp_path):
    """Such as a profiler, in which `__main__` is another program."""
    text = OWN.replace("# half", "# a half").replace(".mean(),", ".mean(),  # small")
    root, kept = write_script(tmp_path, text), files(own_run)

    def as_a_profiler_does(path, run_name):
        code = compile((root / "classification_experiment_1.py").read_text(), path, "exec")
        exec(code, {"__name__": run_name, "__file__": path, "__builtins__": __builtins__})

    for before in (lambda: None, lambda: setattr(runpy, "run_path", as_a_profiler_does)):
        again = run(own_run, *PLAIN, root=root, before=before)
        assert again.code == 0 and "finished: epoch 1" in again.out and files(own_run) == kept, again.err


NUMPY = """
for rate in np.geomspace(0.001, 0.1, 3):
    run_experiment(
        title=f"rate {rate}", mean=np.float32(0.5), std=np.float64(0.25), epochs=np.int64(1), variant=rate,
        make_optimizer=lambda model, rate=rate: torch.optim.Adam(model.parameters(), lr=rate, betas=(rate, 0.9)),
        make_scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: np.cos(epoch / 9)),
    )
"""
ONE = NUMPY.replace("np.geomspace(0.001, 0.1, 3)", "[0.1]")


def test_a_script_may_compute_its_numbers_with_numpy(log_dir, tmp_path):
    root = write_script(tmp_path / "scripts", NUMPY)
    assert run(log_dir, *PLAIN, root=root).code == 0
    again = run(log_dir, *PLAIN, "--epochs=2", root=root)
    assert again.code == 0 and again.err == "" and again.out.count("finished: epoch 2") == 3
    for rate in ("0.001", "0.01", "0.1"):
        folder = log_dir / f"classification_experiment_1_{rate}_mnist_limit384"
        assert json.loads((folder / "run.json").read_text())["variant"] == float(rate)
        (group,) = torch.load(folder / "checkpoint.pt", weights_only=True)["optimizer"]["param_groups"]
        assert group["lr"] == pytest.approx(float(rate) * np.cos(2 / 9)) and type(group["betas"][0]) is float


def test_what_no_checkpoint_can_hold_is_said_before_there_is_an_epoch_to_lose(log_dir, tmp_path):
    call = ONE.replace("betas=(rate, 0.9)", "weight_decay=np.array([0.1])").replace("variant=rate", "variant=None")
    ended = run(log_dir, *PLAIN, root=write_script(tmp_path / "scripts", call))
    assert ended.code == 1 and ended.err.count("\n") == 1 and "(such as numpy's)" in ended.err, ended.err


@pytest.mark.parametrize("variant", ['"a/b"', '"../up"', '""', "(1, 2)", '"two words"'])
def test_a_variant_that_makes_no_folder_name_is_refused_in_a_line(log_dir, tmp_path, variant):
    root = write_script(tmp_path / "scripts", ONE.replace("variant=rate", f"variant={variant}"))
    ended = run(log_dir, *PLAIN, root=root)
    assert ended.err.count("\n") == 1 and "the variant should be a number or a word" in ended.err, ended.err
    assert not list(log_dir.iterdir()) and not (log_dir.parent / "up").exists()
