"""Whatever happens to a run: it goes on to the end that it would have had, or says in one line what is to be done."""

import json
import math
import os
import resource
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import imageio.v3 as imageio
import pytest
import torch
from conftest import collapse, files, finish, finished_run, read_metrics, refused_run, result, run, start
from filelock import FileLock
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import common

SEVEN = "--limit=384", "--epochs=7"


@pytest.fixture
def folder(log_dir):
    return log_dir / "classification_experiment_1_limit384"


@pytest.fixture(scope="module")
def five_epochs(tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("five") / "runs", "--epochs=5").folder


@pytest.fixture
def stopped(five_epochs, folder):
    """A run stopped after epoch 5: what a finished run of five epochs leaves."""
    return shutil.copytree(five_epochs, folder)


def before_the_file(monkeypatch, name, nth, part=None):
    """Lets a run be killed before the nth writing of a file, or once a part of that is on the disk."""
    write, calls = common.write, []

    def killed(path, data):
        calls.append(path.name)
        if calls.count(name) == nth:
            if part:
                path.with_name(path.name + ".tmp").write_bytes(data[: int(part * len(data))])
            os.kill(os.getpid(), signal.SIGKILL)
        write(path, data)

    monkeypatch.setattr(common, "write", killed)


FIRST = "before the first epoch, between events and checkpoint"
KILLS = {  # of a run that has five epochs, or none
    FIRST: lambda patch: before_the_file(patch, "checkpoint.pt", 1),
    "between events and tables": lambda patch: before_the_file(patch, "metrics.csv", 1),
    "between tables and checkpoint": lambda patch: before_the_file(patch, "checkpoint.pt", 1),
    "during the writing of a figure": lambda patch: before_the_file(patch, "007.png", 1, 0.5),
    "between the weights and the GIF": lambda patch: before_the_file(patch, "progress.gif", 1),
    "during the writing of the last checkpoint": lambda patch: before_the_file(patch, "checkpoint.pt", 2, 0.5),
}


@pytest.mark.parametrize("moment", KILLS)
def test_a_killed_run_goes_on_to_the_same_end(whole_run, stopped, monkeypatch, moment):
    folder = stopped
    if moment == FIRST:
        shutil.rmtree(folder)
    killed = run(folder.parent, *SEVEN, before=lambda: KILLS[moment](monkeypatch))
    assert killed.code == -signal.SIGKILL
    assert run(folder.parent, *SEVEN).code == 0
    assert result(folder) == result(whole_run.folder)
    assert (imageio.imread(folder / "progress.gif") == imageio.imread(whole_run.folder / "progress.gif")).all()
    for name in ("000", "005", "007"):
        states = [common.load_state(each / "weights" / f"{name}.pt") for each in (folder, whole_run.folder)]
        assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    events = EventAccumulator(str(folder)).Reload()
    for tag in ("train/loss", "test/accuracy", "stn/rate", "outcome/best_accuracy"):
        assert [event.step for event in events.Scalars(tag)] == [1, 2, 3, 4, 5, 6, 7]
    assert [image.step for image in events.Images("progress")] == [0, 5, 7]
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_end_in_one_line_and_the_run_goes_on(whole_run, folder, signum):
    process = start(folder.parent, "--limit=384", "--epochs=9999")
    while not (folder / "metrics.csv").exists() or len((folder / "metrics.csv").read_text().splitlines()) < 4:
        assert process.is_alive()
        time.sleep(0.02)
    os.kill(process.pid, signum)
    ended = finish(process, folder.parent)
    assert ended.code == 130
    assert ended.err == "stopped: the same command goes on after the last epoch that was shown\n"
    epoch = len(torch.load(folder / "checkpoint.pt", weights_only=True)["history"])
    assert run(folder.parent, "--limit=384", f"--epochs={max(7, epoch + 1)}").code == 0
    assert result(folder)[0][:8] == result(whole_run.folder)[0]


def test_a_finished_run_says_so_and_changes_nothing(stopped):
    before = files(stopped)
    for epochs in ("--epochs=5", "--epochs=3"):
        again = run(stopped.parent, "--limit=384", epochs)
        assert again.code == 0 and "finished: epoch 5" in again.out and str(stopped) in again.out
        assert files(stopped) == before


def test_to_what_end_a_finished_run_was_asked_to_go_is_noted(stopped):
    """Shortened, it is finished for what collects it as well; of another machine's facts nothing is noted."""
    run_json = stopped / "run.json"
    before = json.loads(run_json.read_text()) | {"epochs": 9, "cpu": "another"}
    run_json.write_text(json.dumps(before))
    assert run(stopped.parent, "--limit=384", "--epochs=3").code == 0
    assert json.loads(run_json.read_text()) == before | {"epochs": 5}
    assert run(stopped.parent, "--limit=384", "--epochs=3", "--stop-on-collapse").code == 0
    assert json.loads(run_json.read_text()) == before | {"epochs": 5, "stop_on_collapse": True}


def test_auto_digits_are_those_that_the_run_was_begun_with(whole_run, stopped):
    ended = run(stopped.parent, *SEVEN, "--digits=auto", "--data-dir=nowhere")
    assert ended.code == 0 and ended.err == "" and not Path("nowhere").exists()
    assert result(stopped) == result(whole_run.folder)


@pytest.mark.parametrize("lost", [["metrics.csv", "progress.gif"], ["run.json"]])
def test_what_a_finished_run_lost_is_made_again_without_its_weights_and_nothing_is_drawn(stopped, lost):
    shutil.rmtree(stopped / "weights")
    before = files(stopped)
    for name in lost:
        (stopped / name).unlink()
    ended = run(stopped.parent, "--limit=384", "--epochs=5", before=lambda: setattr(common, "draw_figure", None))
    assert ended.code == 0
    after = files(stopped)
    assert after.keys() == before.keys() and all(after[name][1] == before[name][1] for name in before)
    written = {name for name in after if after[name] != before[name]}
    assert written <= {"metrics.csv", "run.json", "progress.gif"}


def test_a_second_process_is_refused_at_once(stopped):
    with FileLock(stopped / ".lock"):
        ended = refused_run(stopped.parent, f"another process is running in {stopped}", *SEVEN)
    assert "if none is, remove its file .lock" in ended.err
    assert run(stopped.parent, "--limit=384", "--epochs=5").code == 0  # a lock file that nobody holds is no lock


def test_a_run_with_other_digits_is_refused(stopped):
    kept = result(stopped)
    refused_run(stopped.parent, "digits was embedded, is full", *SEVEN, "--digits=full")
    assert result(stopped) == kept


@pytest.mark.parametrize("how", ["cut", "a list", "without optimizer"])
def test_a_damaged_checkpoint_is_named_and_nothing_is_deleted(stopped, how):
    path = stopped / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    if how == "cut":
        path.write_bytes(path.read_bytes()[:100_000])
    else:
        del state["optimizer"]
        torch.save([1, 2] if how == "a list" else state, path)
    before = files(stopped)
    ended = refused_run(stopped.parent, f"{path} is of another format: ", *SEVEN)
    assert "put a whole one there, or choose another" in ended.err
    assert files(stopped) == before


def test_without_its_checkpoint_a_run_is_not_begun_anew_over_what_was_trained(stopped):
    (stopped / "checkpoint.pt").unlink()
    before = files(stopped)
    refused_run(stopped.parent, f"{stopped} has lost its checkpoint.pt", *SEVEN)
    assert files(stopped) == before


def test_figures_that_were_removed_are_no_obstacle(whole_run, stopped):
    shutil.rmtree(stopped / "figures")
    (stopped / "progress.gif").unlink()
    assert run(stopped.parent, "--limit=384", "--epochs=5").code == 0
    assert run(stopped.parent, *SEVEN).code == 0 and result(stopped) == result(whole_run.folder)
    assert (stopped / "progress.gif").exists()


@pytest.mark.parametrize("name", ["weights/006.pt", "checkpoint.pt", None])
def test_a_full_disk_is_one_line_and_the_last_checkpoint_loads(whole_run, stopped, monkeypatch, name):
    """Full from the moment in which a file of the next epoch is written, or for TensorBoard's events."""

    def fill_up(size=400):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def fill_up_then():
        write = common.write
        monkeypatch.setattr(
            common, "write", lambda path, data: (path == stopped / name and fill_up(), write(path, data))
        )

    before = fill_up_then if name else partial(fill_up, 2000)
    ended = refused_run(stopped.parent, "File too large", "--limit=384", "--epochs=6", before=before)
    assert "the same command goes on" in ended.err
    assert len(torch.load(stopped / "checkpoint.pt", weights_only=True)["history"]) == 5
    assert run(stopped.parent, *SEVEN).code == 0
    assert result(stopped) == result(whole_run.folder)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_everything(whole_run, stopped, monkeypatch):
    def explode():
        monkeypatch.setattr(common, "train", lambda *_: {"train/loss": math.nan})

    refused_run(stopped.parent, "the loss is not finite in epoch 6", *SEVEN, before=explode)
    assert len(read_metrics(stopped)) == 5
    assert run(stopped.parent, *SEVEN).code == 0
    assert result(stopped) == result(whole_run.folder)


def test_a_collapse_is_said_and_the_run_goes_on(folder, monkeypatch):
    """It comes back in epoch 6."""

    def patch():
        collapse(monkeypatch, 3, back=6)
        draw = common.draw_figure
        monkeypatch.setattr(common, "draw_figure", lambda *args: print("title:", args[-1]) or draw(*args))

    ended = run(folder.parent, *SEVEN, before=patch)
    titles = [line for line in ended.out.splitlines() if line.startswith("title:")]
    name = "title: classification_experiment_1_limit384 (embedded digits): normalized, SGD 0.01"
    at_5, at_7 = (f"accuracy {read_metrics(folder)['test/accuracy'][epoch - 1]:.2f} %" for epoch in (5, 7))
    assert titles == [
        f"{name}, epoch 0, before training",
        f"{name}, epoch 5, {at_5}, COLLAPSED in epoch 3",
        f"{name}, epoch 7, {at_7}",
    ]
    assert ended.code == 0 and ended.out.count("COLLAPSED IN EPOCH 3") == 1 and "collapsed 3" in ended.out
    run_json = json.loads((folder / "run.json").read_text())
    assert run_json["collapsed"] == run_json["failed"] == 3 and run_json["lost_solution"] is None
    events = EventAccumulator(str(folder)).Reload()
    failed = [(event.step, event.value) for event in events.Scalars("outcome/failed_in_epoch")]
    assert failed == [(epoch, 3) for epoch in range(3, 8)]


def test_stop_on_collapse_ends_the_run_there_and_leaving_it_out_goes_on(folder, monkeypatch):
    def patch():
        collapse(monkeypatch, 3)

    for _ in range(2):
        ended = run(folder.parent, *SEVEN, "--stop-on-collapse", before=patch)
        assert ended.code == 0 and len(read_metrics(folder)) == 3 and (folder / "weights" / "003.pt").exists()
        assert json.loads((folder / "run.json").read_text())["stop_on_collapse"]
    assert "epoch 3, best accuracy" in ended.out
    assert run(folder.parent, *SEVEN, before=patch).code == 0
    assert len(read_metrics(folder)) == 7
    assert not json.loads((folder / "run.json").read_text())["stop_on_collapse"]
    assert len(imageio.imread(folder / "progress.gif")) == 4  # epochs 0, 3, 5 and 7
