"""Which runs assets/collect.py adds to runs.csv and results.csv, and which it leaves out or refuses."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT
from conftest import run as run_experiment

import common

sys.path.insert(0, str(ROOT / "assets"))
import collect  # noqa: E402

FILES = ("runs.csv", "results.csv")


@pytest.fixture
def assets(tmp_path):
    """A folder with the committed CSV files."""
    folder = tmp_path / "assets"
    folder.mkdir()
    for name in FILES:
        shutil.copy(ROOT / "assets" / name, folder)
    return folder


def contents(folder):
    return [(folder / name).read_bytes() for name in FILES]


def edit(folder, **changes):
    """Changes what run.json says."""
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def cut(folder, epoch, **changes):
    """Makes a run folder look as it did after an earlier epoch."""
    path = folder / "metrics.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[: 1 + epoch]))
    history = collect.read_table(path)
    edit(folder, **common.summarize(history), **changes)


def refused(log_dir, assets):
    """The one line with which runs are refused; the CSV files stay as they are."""
    before = contents(assets)
    with pytest.raises(common.RunError) as error:
        collect.collect(log_dir, assets)
    assert contents(assets) == before and "\n" not in str(error.value)
    return str(error.value)


def added(assets):
    """The runs that are not among the committed ones, by seed."""
    committed = {collect.key_of(run) for run in collect.read_runs()}
    return {run["seed"]: run for run in collect.read_runs(assets) if collect.key_of(run) not in committed}


def test_read_and_written_again_the_committed_files_are_what_they_were(tmp_path):
    runs = collect.read_runs()
    collect.write_runs(reversed(runs), tmp_path)
    assert contents(tmp_path) == contents(ROOT / "assets")
    assert len(runs) >= 27 and all(len(run["history"]) == run["epoch"] for run in runs)
    for run in runs:
        outcome = common.summarize(run["history"])
        assert {name: run[name] for name in outcome} == outcome


def test_a_finished_run_is_added_whole_and_collected_again_changes_nothing(whole_run, assets, capsys):
    before = contents(assets)
    collect.collect(whole_run.folder.parent, assets)
    (run,) = added(assets).values()
    told = json.loads((whole_run.folder / "run.json").read_text())
    assert run["experiment"] == 1 and run["variant"] is None and run["limit"] == 384 and run["digits"] == "embedded"
    del told["experiment"], told["stop_on_collapse"]
    assert {name: run[name] for name in told} == told
    checkpoint = common.load_state(whole_run.folder / "checkpoint.pt")
    assert [row["epoch"] for row in run["history"]] == [*range(1, 8)]
    for row, wanted in zip(run["history"], checkpoint["history"], strict=True):
        assert row == pytest.approx(wanted, rel=1e-5)
    for old, new in zip(before, contents(assets), strict=True):
        assert set(old.splitlines()) < set(new.splitlines())  # the others stay as they were
    assert capsys.readouterr().out == f"{len(collect.read_runs()) + 1} runs are in {assets / 'runs.csv'}\n"

    once = contents(assets)
    collect.collect(whole_run.folder.parent, assets)
    assert contents(assets) == once


def test_the_first_run_makes_the_files(whole_run, tmp_path):
    collect.collect(whole_run.folder.parent, tmp_path)
    (run,) = collect.read_runs(tmp_path)
    assert run["epoch"] == len(run["history"]) == 7


def test_an_unfinished_run_is_left_out_with_a_line(whole_run, assets, tmp_path, capsys):
    before = contents(assets)
    folder = shutil.copytree(whole_run.folder, tmp_path / "runs" / "unfinished")
    edit(folder, epochs=100)
    collect.collect(folder.parent, assets)
    assert contents(assets) == before
    assert f"left out, not finished: {folder}, 7 of 100 epochs" in capsys.readouterr().out
    shutil.copytree(whole_run.folder, tmp_path / "runs" / "whole")
    edit(folder, seed=5)
    collect.collect(folder.parent, assets)
    assert [*added(assets)] == [0]  # the other one is added nevertheless


def test_a_run_that_was_stopped_at_its_collapse_is_finished(whole_run, assets, tmp_path):
    folder = shutil.copytree(whole_run.folder, tmp_path / "runs" / "stopped")
    edit(folder, epochs=100, collapsed=7, failed=7)
    collect.collect(folder.parent, assets)  # it goes on, and collapsed in the epoch that it has just ended
    assert not added(assets)
    edit(folder, stop_on_collapse=True)
    collect.collect(folder.parent, assets)
    assert added(assets)[0]["epoch"] == 7 and added(assets)[0]["collapsed"] == 7


def test_a_longer_run_replaces_the_shorter_and_never_the_other_way(whole_run, assets, tmp_path, capsys):
    short = shutil.copytree(whole_run.folder, tmp_path / "short" / "run")
    cut(short, 4, epochs=4)
    collect.collect(short.parent, assets)
    assert added(assets)[0]["epoch"] == len(added(assets)[0]["history"]) == 4
    collect.collect(whole_run.folder.parent, assets)
    assert added(assets)[0]["epoch"] == len(added(assets)[0]["history"]) == 7
    longer = contents(assets)
    capsys.readouterr()
    collect.collect(short.parent, assets)
    assert contents(assets) == longer
    line = capsys.readouterr().out.splitlines()[0]
    assert str(short) in line and "4" in line and "7" in line and "not finished" not in line


def test_a_variant_may_be_a_word(whole_run, assets, tmp_path):
    for variant in ("small", "large"):
        edit(shutil.copytree(whole_run.folder, tmp_path / "runs" / variant), variant=variant)
    collect.collect(tmp_path / "runs", assets)
    collect.collect(tmp_path / "runs", assets)
    variants = [run["variant"] for run in collect.read_runs(assets) if run["limit"] == 384]
    assert variants == ["large", "small"]


def test_a_disk_that_is_full_half_way_loses_nothing(whole_run, assets, monkeypatch):
    runs = collect.read_runs(assets)
    written = []

    def write_one(path, data):
        if written:
            raise OSError("No space left on device")
        written.append(common.write(path, data))

    monkeypatch.setattr(collect, "write", write_one)
    with pytest.raises(OSError, match="No space left"):
        collect.collect(whole_run.folder.parent, assets)
    monkeypatch.undo()
    assert collect.read_runs(assets) == runs
    collect.collect(whole_run.folder.parent, assets)
    assert added(assets)[0]["epoch"] == 7


@pytest.mark.parametrize(
    "change, words",
    [
        ({"optimizer": "SGD(lr=0.02)"}, "optimizer was SGD(lr=0.01), is SGD(lr=0.02)"),
        ({"max_grad_norm": 1}, "max_grad_norm was None, is 1"),
        ({"mean": 0, "std": 1}, "mean was 0.1307, is 0; std was 0.3081, is 1"),
        ({"transformer": "class Squashed: ..."}, "transformer was SpatialTransformer, is class Squashed: ..."),
        ({"batch_size": 32}, "batch_size was 64, is 32"),
        ({"fill": -0.4}, "fill was 0, is -0.4"),
    ],
)
def test_a_run_with_other_settings_than_the_one_of_its_name_is_refused(whole_run, assets, tmp_path, change, words):
    collect.collect(whole_run.folder.parent, assets)
    folder = shutil.copytree(whole_run.folder, tmp_path / "runs" / "z_other")
    edit(folder, **change)
    edit(shutil.copytree(whole_run.folder, tmp_path / "runs" / "a_third"), seed=3)  # comes first, and is not added
    line = refused(folder.parent, assets)
    assert str(folder) in line and f"({words})" in line and "nothing added" in line


def damage(folder, how):
    """Makes a run folder one that cannot be read, and returns what is said of it."""
    metrics, told = folder / "metrics.csv", json.loads((folder / "run.json").read_text())
    lines = [line.split(",") for line in metrics.read_text().splitlines()]
    if how == "torn":
        (folder / "run.json").write_text('{"experiment": ')
    elif how == "no object":
        (folder / "run.json").write_text("[]")
    elif how == "no metrics":
        metrics.unlink()
    elif how == "short metrics":
        metrics.write_text("".join(",".join(cells) + "\n" for cells in lines[:4]))
    elif how == "torn metrics":
        metrics.write_text(metrics.read_text()[:-60])
    elif how == "old metrics":
        at = lines[0].index("stn/spread")
        metrics.write_text("".join(",".join(cells[:at] + cells[at + 1 :]) + "\n" for cells in lines))
        return "stn/spread is missing"
    else:
        del told[how]
        (folder / "run.json").write_text(json.dumps(told))
        return how
    return "holds no run of this version"


@pytest.mark.parametrize(
    "how",
    ["torn", "no object", "no metrics", "short metrics", "torn metrics", "old metrics"]
    + ["title", "transformer", "epoch", "best_accuracy"],  # what run.json lacks
)
def test_a_folder_that_cannot_be_read_is_refused_in_one_line(whole_run, assets, tmp_path, how):
    folder = shutil.copytree(whole_run.folder, tmp_path / "runs" / "run")
    words = damage(folder, how)
    line = refused(folder.parent, assets)
    assert words in line and str(folder) in line


def test_a_folder_without_runs_is_refused_in_one_line(whole_run, assets, tmp_path):
    (tmp_path / "file").write_text("")
    for log_dir in (tmp_path / "nowhere", tmp_path, tmp_path / "file", whole_run.folder):
        line = refused(log_dir, assets)
        assert f"{log_dir} holds no run folders: give the folder that they are in" in line


def test_the_command_ends_in_one_line_and_exit_code_1(tmp_path, monkeypatch):
    for arguments in ([], [str(tmp_path)], ["one", "more"]):
        monkeypatch.setattr(sys, "argv", ["collect.py", *arguments])
        with pytest.raises(SystemExit) as error:
            collect.main()
        line = error.value.code  # a text, which Python prints, and exits with 1
        assert line.startswith("collect.py: error: " if len(arguments) == 1 else "usage: ") and "\n" not in line


def test_the_runs_of_a_loop_are_told_apart_by_their_variants(log_dir, assets):
    ended = run_experiment(log_dir, "--limit=384", "--epochs=1", number=17)
    assert ended.code == 0, ended.err
    collect.collect(log_dir, assets)
    runs = [run for run in collect.read_runs(assets) if run["experiment"] == 17 and run["limit"] == 384]
    assert [run["variant"] for run in runs] == [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1]
    assert {run["dataset"] for run in runs} == {"mnist"} and len({run["optimizer"] for run in runs}) == 7


def test_an_experiment_that_nobody_has_heard_of_needs_no_other_file(tmp_path):
    script = tmp_path / "classification_experiment_99.py"
    text = (ROOT / "classification_experiment_1.py").read_text()
    script.write_text(text.replace("lr=0.01", "lr=0.02").replace("normalized, SGD 0.01", "normalized, SGD 0.02"))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, script, "--limit=384", "--digits=embedded", "--device=cpu", f"--log-dir={tmp_path}"]
    for seed, epochs in ((0, 2), (1, 2), (2, 1)):
        options = [f"--seed={seed}", f"--epochs={epochs}"]
        ended = subprocess.run([*command, *options], env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
    assets = tmp_path / "assets"
    assets.mkdir()
    collect.collect(tmp_path, assets)
    runs = collect.read_runs(assets)
    assert [(run["experiment"], run["seed"], run["title"], run["epoch"], run["epochs"]) for run in runs] == [
        (99, 0, "normalized, SGD 0.02", 2, 2),
        (99, 1, "normalized, SGD 0.02", 2, 2),
        (99, 2, "normalized, SGD 0.02", 1, 1),
    ]
    assert {run["optimizer"] for run in runs} == {"SGD(lr=0.02)"}
    assert [len(run["history"]) for run in runs] == [2, 2, 1]
