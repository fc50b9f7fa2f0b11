"""Runs of the experiments for the tests: on a few images, with the embedded digits, in forked processes.

A fork saves the seconds that importing torch takes; it is safe because torch runs a single thread here.
"""

import multiprocessing
import os
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
torch.set_num_threads(1)


def start(log_dir, *options, number=1, before=lambda: None):
    """Starts `python classification_experiment_<number>.py` in a process of its own, after `before()` in there."""

    def main():
        for name, descriptor in (("stdout", 1), ("stderr", 2)):
            file = open(log_dir.parent / name, "w")
            os.dup2(file.fileno(), descriptor)
            setattr(sys, name, file)
        before()
        script = ROOT / f"classification_experiment_{number}.py"
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


def run(log_dir, *options, number=1, before=lambda: None):
    return finish(start(log_dir, *options, number=number, before=before), log_dir)


def read_metrics(folder):
    """metrics.csv as a structured array, its columns named as in its head."""
    lines = (folder / "metrics.csv").read_text().splitlines()
    names = lines[0].split(",")
    rows = [tuple(map(float, line.split(","))) for line in lines[1:]]
    return np.array(rows, dtype=[(name, float) for name in names])


def result(folder):
    """What must not depend on how often a run was stopped: the metrics but for the seconds, and the final weights."""
    lines = (folder / "metrics.csv").read_text().splitlines()
    weights = torch.load(folder / "checkpoint.pt", weights_only=True)["model"]
    return [line.rpartition(",")[0] for line in lines], {name: value.tolist() for name, value in weights.items()}


@pytest.fixture
def log_dir(tmp_path):
    """An empty folder for run folders, with room beside it for what a run prints."""
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory):
    """A run of experiment 1 over 7 epochs that nothing happened to."""
    log_dir = tmp_path_factory.mktemp("whole") / "runs"
    log_dir.mkdir()
    ended = run(log_dir, "--limit=384", "--epochs=7")
    assert ended.code == 0, ended.err
    return SimpleNamespace(folder=log_dir / "classification_experiment_1_limit384", **vars(ended))
