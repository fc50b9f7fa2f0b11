"""Runs of the experiments for the tests: on a few images, with the embedded digits, in forked processes.

A fork saves the seconds that importing torch takes; it is safe because torch runs a single thread here. The runs are
on the CPU, and tests on a GPU come last: once a process has trained on a GPU, its forks can train nowhere.
"""

import json
import multiprocessing
import os
import runpy
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import common

ROOT = Path(__file__).parents[1]
PLAIN = "--limit=384", "--dataset=mnist"
PLAIN_NAME = "classification_experiment_1_mnist_limit384"
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: "cuda" in item.name)


def start(log_dir, *options, number=1, before=lambda: None, root=ROOT):
    """Starts `python <root>/classification_experiment_<number>.py` in a process of its own, after `before()` there."""

    def main():
        for name, descriptor in (("stdout", 1), ("stderr", 2)):
            file = open(log_dir.parent / name, "w")
            os.dup2(file.fileno(), descriptor)
            setattr(sys, name, file)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may be a job that ignores it
        torch.cuda.is_available = lambda: False
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", "")).startswith((str(ROOT / "tests"), str(ROOT / "assets"))):
                del sys.modules[name]  # which the script did not import
        before()
        script = root / f"classification_experiment_{number}.py"
        sys.argv = [script.name, *options, f"--log-dir={log_dir}"]
        if not any(option.startswith("--digits") for option in options):
            sys.argv.append("--digits=embedded")
        runpy.run_path(str(script), run_name="__main__")

    process = multiprocessing.get_context("fork").Process(target=main)
    process.start()
    return process


def finish(process, log_dir):
    """Waits for a process and returns its exit code (negative: the signal that killed it) and what it printed."""
    process.join(120)
    out, err = ((log_dir.parent / name).read_text() for name in ("stdout", "stderr"))
    return SimpleNamespace(code=process.exitcode, out=out, err=err)


def run(log_dir, *options, **arguments):
    return finish(start(log_dir, *options, **arguments), log_dir)


def refused_run(log_dir, words, *options, **arguments):
    """Runs what should end in one line, with these words, and exit code 1; returns what `run` does."""
    ended = run(log_dir, *options, **arguments)
    assert ended.code == 1 and ended.err.count("\n") == 1 and words in ended.err, ended.err
    return ended


def write_script(folder, text, number=1):
    """A script of a user, in a folder of its own, that begins as ours do; returns the folder."""
    folder.mkdir(exist_ok=True)
    head = '"""Experiment: a user\'s?"""\n\nimport numpy as np\nimport torch\n\nfrom common import run_experiment\n\n'
    (folder / f"classification_experiment_{number}.py").write_text(head + text)
    return folder


# Runs of a user's script that differ by their rate, one of RATES
SWEEP = """
for rate in RATES:
    run_experiment(
        title=f"rate {rate}", mean=0.5, std=0.25, epochs=1, variant=rate, make_optimizer=lambda model, rate=rate:
        torch.optim.SGD(model.parameters(), lr=rate),
    )
"""


def experiment(**given):
    """An `Experiment` like the first, but for what is given."""
    fixed = {"name": "classification_experiment_1", "title": "for tests", "mean": 0.1307, "std": 0.3081, "epochs": 1}
    fixed["make_optimizer"] = lambda model: torch.optim.SGD(model.parameters(), lr=0.01)
    return common.Experiment(**(fixed | given))


def read_metrics(folder):
    """metrics.csv as a structured array, its columns named as in its head, an empty cell as nan."""
    lines = (folder / "metrics.csv").read_text().splitlines()
    names = lines[0].split(",")
    rows = [tuple(float(cell or "nan") for cell in line.split(",")) for line in lines[1:]]
    return np.array(rows, dtype=[(name, float) for name in names])


def edit(folder, *without, **changes):
    """Changes what run.json says, and takes names out of it."""
    path = folder / "run.json"
    told = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({name: told[name] for name in told if name not in without}), encoding="utf-8")


def result(folder):
    """What must not depend on how often a run was stopped: the metrics but for the seconds, and the final weights."""
    lines = (folder / "metrics.csv").read_text().splitlines()
    weights = torch.load(folder / "checkpoint.pt", weights_only=True)["model"]
    return [line.rpartition(",")[0] for line in lines], {name: value.tolist() for name, value in weights.items()}


def files(folder):
    """All that a folder holds and when it was written, but for locks."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def collapse(monkeypatch, epoch, back=None):
    """Lets the transformer look away from every image after an epoch's training, and at them whole after another's."""
    train = common.train

    def looking_away(experiment, network, *args):
        row = train(experiment, network, *args)
        now = torch.initial_seed() % 10_000  # each epoch is seeded by its number
        last = network.model.stn.fc_loc[-1]
        if now == epoch:
            last.weight.data.zero_()
            last.bias.data = torch.tensor([1.0, 0, 50, 0, 1, 50])
        if now == back:
            last.bias.data = torch.tensor([1.0, 0, 0, 0, 1, 0])
        return row

    monkeypatch.setattr(common, "train", looking_away)


@pytest.fixture
def log_dir(tmp_path):
    """An empty folder for run folders, with room beside it for what a run prints."""
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


def finished_run(log_dir, *options, **arguments):
    """A run of experiment 1 that nothing happened to, or of what is given: its folder, and what `run` returns."""
    log_dir.mkdir()
    ended = run(log_dir, "--limit=384", *options, **arguments)
    assert ended.code == 0, ended.err
    return SimpleNamespace(folder=min(log_dir.iterdir()), **vars(ended))


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("whole") / "runs", "--epochs=7")


@pytest.fixture(scope="session")
def loop_runs(tmp_path_factory):
    """The log folder of an epoch of experiment 26, a loop over six limits."""
    return finished_run(tmp_path_factory.mktemp("loop") / "runs", "--epochs=1", number=26).folder.parent


@pytest.fixture(scope="session")
def short_run(tmp_path_factory):
    """Of two epochs, on plain digits."""
    return finished_run(tmp_path_factory.mktemp("short") / "runs", "--epochs=2", "--dataset=mnist")
