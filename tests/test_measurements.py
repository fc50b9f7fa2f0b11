"""Replays measure a run as it was, and refuse what is none."""

import shutil
import sys

import pytest
import torch
from conftest import ROOT, edit, finished_run

import common
import stn
from assets import collect, rebuild, replay
from assets.rebuild import SavedRun
from assets.records import read_table, weights_key


@pytest.fixture(scope="module")
def folders(tmp_path_factory, loop_runs):
    """Run folders of experiments that differ in what has to be rebuilt, by their numbers."""
    made = {}
    for number in (11, 12, 13, 25, 38):
        made[number] = finished_run(tmp_path_factory.mktemp("measured") / "runs", "--epochs=1", number=number).folder
    return made | {26: loop_runs / "classification_experiment_26_unlimited_limit384"}


# -------------------------------------------------------------------------------------------------------------- rebuild


def test_a_rebuilt_run_trains_as_it_did(folders, whole_run, short_run, tmp_path):
    limited = folders[26].with_name("classification_experiment_26_0.1_limit384")
    older = shutil.copytree(whole_run.folder, tmp_path / "older")
    edit(older, "max_motion", "scheduler", "penalty", "data_dir")
    for folder in (*folders.values(), limited, older, short_run.folder):
        saved = SavedRun(folder)
        saved.load(0)
        row, told = saved.train_epoch(1), saved.run["history"][0]
        assert row == {tag: told[tag] for tag in row}  # to the last bit


def test_a_run_of_another_script_is_refused(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(rebuild, "ROOT", tmp_path)
    with pytest.raises(common.RunError, match="classification_experiment_13.py"):  # it is not there
        SavedRun(folders[13])
    script = tmp_path / "classification_experiment_13.py"
    for old, new, words in (
        ("lr=0.01", "lr=0.02", r"optimizer was SGD\(lr=0.01\), is SGD\(lr=0.02\)"),
        (".tanh()", ".sigmoid()", r"theta\(images\)\.tanh\(\)` was there, now `.*theta\(images\)\.sigmoid\(\)`"),
        ("mean=0.1307", "variant='other', mean=0.1307", "does not have any more"),
    ):
        script.write_text((ROOT / script.name).read_text().replace(old, new))
        with pytest.raises(common.RunError, match=words):
            SavedRun(folders[13])


# -------------------------------------------------------------------------------------------------------------- replays


def test_a_replay_is_the_run_and_measures_its_steps(whole_run):
    before, steps = replay.replay(whole_run.folder, 6)
    assert len(before) == len(steps) == 6
    assert replay.replay(whole_run.folder, 7)[0] == steps  # which begins with other weights
    saved = SavedRun(whole_run.folder)
    assert max(step["gradient"] for step in steps) == saved.run["history"][5]["train/grad_norm_max"]

    saved.load(5)
    images, labels = saved.train_set
    torch.manual_seed(6)
    batch = torch.randperm(384)[:64]
    inputs = (images[batch].float() / 255 - 0.1307) / 0.3081
    torch.nn.functional.cross_entropy(saved.model(inputs), labels[batch]).backward()
    gradients = [weights.grad.flatten() for weights in saved.model.stn.localization.parameters()]
    theta = saved.model.stn.theta(inputs)
    hidden = saved.model.stn.fc_loc[0](saved.model.stn.localization(inputs).flatten(1))
    wanted = stn.inside(theta), stn.scale(theta), (hidden > 0).float().mean(), stn.spread(theta)
    wanted = [value.item() for value in (*wanted, torch.cat(gradients).norm())]
    names = "inside", "scale", "active", "spread", "gradient of the localization net"
    assert [steps[0][name] for name in names] == pytest.approx(wanted, rel=1e-3)


def test_a_replay_is_added_to_the_others_which_stay_as_they_are(whole_run, tmp_path, monkeypatch):
    committed, path = (ROOT / "assets" / "failures.csv"), tmp_path / "failures.csv"
    shutil.copy(committed, path)
    monkeypatch.setattr(replay, "find_failing_step", lambda steps, start: start + 3)
    for epoch in (7, 6, 7):
        replay.add_replay(whole_run.folder, epoch, tmp_path)
    rows = [row for row in read_table(path) if row["digits"] == "embedded"]
    others = [line for line in path.read_text().splitlines() if ",embedded," not in line]
    assert others == committed.read_text().splitlines()
    assert [(row["epoch"], row["step"]) for row in rows] == [(e, step) for e in (6, 7) for step in range(-8, 4)]
    assert [row["gradient"] for row in rows[6:12]] == [row["gradient"] for row in rows[12:18]]  # of epoch 6


def test_the_committed_replays_are_whole_and_begin_to_fail_at_step_0():
    replays = {}
    for row in read_table(ROOT / "assets" / "failures.csv"):
        replays.setdefault(weights_key(row), []).append(row)
    for steps in replays.values():
        first = steps[0]["step"]
        assert first >= -200 and [row["step"] for row in steps] == [*range(first, first + len(steps))]
        assert steps[replay.find_failing_step(steps)]["step"] == 0


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("arguments, code", [([], 2), (["nowhere"], 1)])
def test_a_command_that_cannot_be_done_ends_in_one_line_and_an_exit_code(monkeypatch, capsys, arguments, code):
    monkeypatch.setattr(sys, "argv", ["collect", *arguments])
    with pytest.raises(SystemExit) as end:
        collect.main()
    line = capsys.readouterr().err
    assert end.value.code == code and line.startswith("python -m assets.collect") and line.count("\n") == 1
