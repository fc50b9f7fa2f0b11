"""Replays measure a run as it was, and refuse what is none."""

import shutil

import pytest
import torch
from conftest import ROOT, call, edit, experiment, finished_run

import common
import stn
from assets import collect, elsewhere, rebuild, replay, speed
from assets.rebuild import SavedRun
from assets.records import read_folder, read_table, weights_key


@pytest.fixture(scope="module")
def folders(tmp_path_factory, loop_runs):
    """Run folders of experiments that differ in what has to be rebuilt, by their numbers."""
    made = {}
    for number, epochs in ((11, 1), (12, 1), (13, 1), (25, 7), (38, 1)):
        log_dir = tmp_path_factory.mktemp("measured") / "runs"
        made[number] = finished_run(log_dir, f"--epochs={epochs}", number=number).folder
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


def test_a_transformer_fails_when_it_sees_next_to_nothing_or_follows_no_image():
    well, off, inactive, one_map = (
        {"inside": inside, "active": active, "spread": spread}
        for inside, active, spread in ((0.01, 0.01, 0.01), (0.009, 0.3, 0.3), (0.7, 0.009, 0.3), (0.7, 0.3, 0.009))
    )
    assert replay.find_failing_step([well, well, off, inactive]) == 2
    assert replay.find_failing_step([well, inactive, well, off]) == 1
    assert replay.find_failing_step([well, one_map, well]) == 1
    assert replay.find_failing_step([well, one_map, off]) == 2  # spread decides only where the others do not
    assert replay.find_failing_step([well, well]) is None


def test_a_replay_is_the_run_and_measures_its_steps(whole_run):
    before, steps = replay.replay(whole_run.folder, 6)
    assert len(before) == len(steps) == 6
    assert replay.replay(whole_run.folder, 7)[0] == steps  # which begins with other weights
    assert replay.replay(whole_run.folder, 1)[0] == []

    (images, labels), *_ = common.load_images("cluttered", "nowhere", "embedded", 384)
    saved = SavedRun(whole_run.folder)
    saved.load(5)
    model = saved.model
    torch.manual_seed(6)
    batch = torch.randperm(384)[:64]
    inputs = (images[batch].float() / 255 - 0.1307) / 0.3081
    torch.nn.functional.cross_entropy(model(inputs), labels[batch]).backward()
    norm, norm_of_net = (
        sum(weights.grad.double().square().sum().item() for weights in part.parameters()) ** 0.5
        for part in (model, model.stn.localization)
    )
    theta = model.stn.theta(inputs)
    hidden = model.stn.fc_loc[0](model.stn.localization(inputs).flatten(1))
    centres = theta[:, :, 2].double()
    assert steps[0] == pytest.approx(
        {
            "inside": stn.inside(theta).item(),
            "scale": stn.scale(theta).item(),
            "active": (hidden > 0).sum().item() / hidden.numel(),
            "spread": ((centres - centres.mean(0)) ** 2).mean().sqrt().item(),
            "gradient": norm,
            "gradient of the localization net": norm_of_net,
        },
        rel=1e-3,
    )
    assert tuple(steps[0]) == replay.MEASURES


def test_a_replay_has_the_run_s_largest_gradients(folders):
    for number in (11, 13):
        row, steps = read_folder(folders[number])["history"][0], replay.replay(folders[number], 1)[1]
        assert max(step["gradient"] for step in steps) == row["train/grad_norm_max"]
        if number == 13:  # the map that is measured is the one that it samples with
            assert steps[0]["scale"] == pytest.approx(torch.tensor(1.0).tanh().item()) and steps[0]["inside"] == 1


def test_what_is_measured_of_a_limited_step_is_of_its_whole_batch():
    (images, labels), *_ = common.load_images("cluttered", "nowhere", "embedded", 384)
    steps = []
    for max_motion in (None, 1000):  # which limits nothing
        limited = experiment(mean=0, std=1, max_motion=max_motion)
        network = common.make_network(limited)
        steps.append(replay.record(network.model, network.optimizer))
        common.train(limited, network, images, labels)
    assert steps[0] == steps[1]


def test_an_optimizer_with_a_state_is_replayed_from_the_start_and_refused_later(folders):
    assert len(replay.replay(folders[25], 1)[1]) == 6
    assert len(replay.replay(folders[25], 6)[0]) == 6
    with pytest.raises(common.RunError, match=r"its loss in epoch 6 was .*SGD\(lr=0.01, momentum=0.9\).* up to 6"):
        replay.replay(folders[25], 7)


def test_what_cannot_be_replayed_is_refused_in_one_line(whole_run, tmp_path, monkeypatch, capsys):
    no_weights = shutil.copytree(whole_run.folder, tmp_path / "no weights")
    (no_weights / "weights" / "005.pt").unlink()
    for arguments, words in (
        ((tmp_path / "nowhere",), "holds no run"),
        ((whole_run.folder,), "neither collapsed nor lost its solution: give a run that failed, or an EPOCH"),
        ((whole_run.folder, 8), "has no epoch 8: give one from 1 to 7"),
        ((no_weights, 7), "weights of epoch 5"),
    ):
        code, line = call(replay, monkeypatch, capsys, *arguments)
        assert code == 1 and words in line


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
    (before, in_6), (_, in_7) = (replay.replay(whole_run.folder, epoch) for epoch in (6, 7))
    for row, step in zip(rows, [*before, *in_6, *in_6, *in_7], strict=True):
        assert {name: row[name] for name in replay.MEASURES} == pytest.approx(step, rel=1e-5)


def test_at_most_200_steps_are_kept_on_either_side(tmp_path, whole_run, monkeypatch):
    for end, before in ((37, 30), (500, 0), (900, 30)):  # before: steps in the epoch before
        steps = [{name: 0.5 for name in replay.MEASURES} | {"gradient": i} for i in range(938)]
        steps[end]["inside"] = 0.0
        monkeypatch.setattr(replay, "replay", lambda *_, parts=(steps[:before], steps[before:]): parts)
        replay.add_replay(whole_run.folder, 3, tmp_path)
        kept = [(row["step"], row["gradient"]) for row in read_table(tmp_path / "failures.csv")]
        assert kept == [(i - end, i) for i in range(max(0, end - 200), min(938, end + 201))]


def test_an_epoch_in_which_the_transformer_had_failed_before_is_refused(whole_run, tmp_path, monkeypatch, capsys):
    well, off = ({name: value for name in replay.MEASURES} for value in (0.5, 0.0))
    begins, never = "epoch 6 begins so: try an earlier EPOCH", "epoch 6 is never so: try a later EPOCH"
    for before, steps, words in (
        ([well, off], [off, well], begins),
        ([], [off, well], begins),
        ([off, well], [well, well], never),
    ):
        monkeypatch.setattr(replay, "replay", lambda *_, parts=(before, steps): parts)
        assert words in call(replay, monkeypatch, capsys, whole_run.folder, 6)[1]
    monkeypatch.setattr(replay, "replay", lambda *_: ([off, well], [off, off]))
    replay.add_replay(whole_run.folder, 6, tmp_path)
    assert [row["step"] for row in read_table(tmp_path / "failures.csv")] == [-2, -1, 0, 1]


def test_the_committed_replays_are_whole_and_begin_to_fail_at_step_0():
    replays = {}
    for row in read_table(ROOT / "assets" / "failures.csv"):
        replays.setdefault(weights_key(row), []).append(row)
    for steps in replays.values():
        first = steps[0]["step"]
        assert first >= -200 and [row["step"] for row in steps] == [*range(first, first + len(steps))]
        assert steps[replay.find_failing_step(steps)]["step"] == 0


# ------------------------------------------------------------------------------------------------------------- refusals


def test_wrong_arguments_are_one_line_and_exit_code_2(monkeypatch, capsys):
    for command, arguments in ((collect, []), (elsewhere, ["--only=ours"]), (speed, ["--rounds=0"])):
        assert call(command, monkeypatch, capsys, *arguments)[0] == 2
