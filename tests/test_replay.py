"""The steps around a failure: that a replay is the run, what it measures, and what it refuses."""

import json
import shutil
import sys

import pytest
import torch
from conftest import ROOT, run
from torch.nn.utils import get_total_norm

import common
import stn

sys.path.insert(0, str(ROOT / "assets"))
import rebuild  # noqa: E402
import replay_death  # noqa: E402
from collect import read_folder, read_table, write_table  # noqa: E402

DEATHS = ROOT / "assets" / "deaths.csv"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Run folders of an epoch of experiments that differ in what a replay has to rebuild, by their numbers."""
    log_dir = tmp_path_factory.mktemp("replays") / "runs"
    log_dir.mkdir()
    for number in (3, 11, 12, 13, 17):
        ended = run(log_dir, "--limit=384", "--epochs=1", number=number)
        assert ended.code == 0, ended.err
    variants = {3: "", 11: "", 12: "", 13: "", 17: "_0.05"}
    return {i: log_dir / f"classification_experiment_{i}{variant}_limit384" for i, variant in variants.items()}


def edit(folder, **changes):
    """Changes what run.json says."""
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_transformer_fails_when_it_sees_next_to_nothing_or_follows_no_image():
    well, off, inactive, one_map = (
        {"inside": inside, "active": active, "spread": spread}
        for inside, active, spread in ((0.01, 0.01, 0.01), (0.009, 0.3, 0.3), (0.7, 0.009, 0.3), (0.7, 0.3, 0.009))
    )
    assert replay_death.failing_step([well, well, off, inactive]) == 2
    assert replay_death.failing_step([well, inactive, well, off]) == 1
    assert replay_death.failing_step([well, one_map, well]) == 1
    assert replay_death.failing_step([well, one_map, off]) == 2  # spread decides only where the others do not
    assert replay_death.failing_step([well, well]) is None


def test_a_replay_is_the_run_and_measures_its_steps(whole_run):
    before, steps = replay_death.replay(whole_run.folder, 6)
    assert len(before) == len(steps) == 6
    assert replay_death.replay(whole_run.folder, 7)[0] == steps  # which begins with other weights
    assert replay_death.replay(whole_run.folder, 1)[0] == []

    (images, labels), _, _ = common.load_canvases("cluttered", "nowhere", "embedded", 384)
    model = stn.STNClassifier().to(memory_format=torch.channels_last)
    model.load_state_dict(common.load_state(whole_run.folder / "weights" / "005.pt"))
    torch.manual_seed(6)
    batch = torch.randperm(384)[:64]
    inputs = (images[batch].float() - 0.1307) / 0.3081
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
    assert tuple(steps[0]) == replay_death.MEASURES


def test_each_kind_of_run_is_rebuilt_by_its_script(folders):
    for number in (11, 12, 13, 17):
        row, steps = read_folder(folders[number])["history"][0], replay_death.replay(folders[number], 1)[1]
        assert max(step["gradient"] for step in steps) == row["train/grad_norm_max"]
    assert read_folder(folders[17])["dataset"] == "mnist"


def test_the_gradient_is_the_one_before_clipping():
    (images, labels), _, _ = common.load_canvases("cluttered", "nowhere", "embedded", 384)
    torch.manual_seed(0)
    model = stn.STNClassifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    steps = replay_death.record(model, optimizer)
    row = common.train(model, optimizer, images, labels, lambda batch: batch.float(), max_grad_norm=0.01)
    norms = [step["gradient"] for step in steps]
    assert len(norms) == 6 and min(norms) > 0.1 and row["train/clipped"] == 1
    assert max(norms) == row["train/grad_norm_max"]
    assert get_total_norm([parameter.grad for parameter in model.parameters()]) < 0.011  # what a step is made of
    assert 0 < steps[-1]["gradient of the localization net"] < norms[-1]


def test_the_map_is_the_one_that_the_transformer_samples_with(folders):
    first = replay_death.replay(folders[13], 1)[1][0]
    assert first["scale"] == pytest.approx(torch.tensor(1.0).tanh().item()) and first["inside"] == 1


def test_a_run_with_other_losses_or_another_script_is_refused(whole_run, folders, tmp_path, monkeypatch):
    folder = shutil.copytree(whole_run.folder, tmp_path / "other")
    loss = read_folder(folder)["history"][5]["train/loss"]
    metrics = folder / "metrics.csv"
    metrics.write_text(metrics.read_text().replace(f"\n6,{loss}", f"\n6,{loss + 1e-9}"))
    with pytest.raises(common.RunError, match=f"its loss in epoch 6 was {loss + 1e-9}, here it is {loss}"):
        replay_death.replay(folder, 6)

    with pytest.raises(common.RunError, match=r"is a run of Adam\(lr=0.0001\), whose state is not saved"):
        replay_death.replay(folders[3], 1)

    monkeypatch.setattr(rebuild, "ROOT", tmp_path)
    with pytest.raises(common.RunError, match="classification_experiment_13.py"):  # it is not there
        replay_death.replay(folders[13], 1)
    script = tmp_path / "classification_experiment_13.py"
    momentum = shutil.copytree(folders[13], tmp_path / "momentum")
    edit(momentum, optimizer="SGD(lr=0.01, momentum=0.9)")
    for old, new, words in (
        ("lr=0.01", "lr=0.02", r"optimizer was SGD\(lr=0.01\), is SGD\(lr=0.02\)"),
        (".tanh()", ".sigmoid()", r"transformer was class Squashed.*tanh\(\), is class Squashed.*sigmoid\(\)"),
        ("epochs=100,", "epochs=100, max_grad_norm=5,", "max_grad_norm was None, is 5"),
        ("lr=0.01", "lr=0.01, momentum=0.9", r"optimizer was SGD\(lr=0.01\), is SGD\(lr=0.01, momentum=0.9\)"),
    ):
        script.write_text((ROOT / script.name).read_text().replace(old, new))
        with pytest.raises(common.RunError, match=words):
            replay_death.replay(folders[13], 1)
    with pytest.raises(common.RunError, match=r"is a run of SGD\(lr=0.01, momentum=0.9\), whose state is not saved"):
        replay_death.replay(momentum, 1)


def test_a_loop_without_the_runs_rate_is_refused(folders, tmp_path):
    folder = shutil.copytree(folders[17], tmp_path / "other")
    edit(folder, variant=0.06)
    with pytest.raises(common.RunError, match="classification_experiment_17.py"):
        replay_death.replay(folder, 1)


def refused(monkeypatch, *arguments):
    """The one line that the command ends with, with exit code 1."""
    monkeypatch.setattr(sys, "argv", ["replay_death.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as error:
        replay_death.main()
    assert isinstance(error.value.code, str) and "\n" not in error.value.code  # which Python prints, and exits with 1
    return error.value.code


def test_what_cannot_be_replayed_is_refused_in_one_line(whole_run, tmp_path, monkeypatch):
    monkeypatch.setattr(replay_death, "ASSETS", tmp_path)

    def copy(name, **changes):
        folder = shutil.copytree(whole_run.folder, tmp_path / name)
        edit(folder, **changes)
        return folder

    (tmp_path / "empty").mkdir()
    no_weights, torn = copy("no weights"), copy("torn")
    (no_weights / "weights" / "005.pt").unlink()
    (torn / "run.json").write_text('{"experiment": ')
    old = copy("old")
    lines = [line.split(",") for line in (old / "metrics.csv").read_text().splitlines()]
    column = lines[0].index("stn/spread")
    (old / "metrics.csv").write_text("\n".join(",".join(cells[:column] + cells[column + 1 :]) for cells in lines))
    for arguments, words in (
        ((tmp_path / "nowhere",), "holds no run"),
        ((tmp_path / "empty",), "holds no run"),
        ((torn,), "holds no run"),
        ((old,), "stn/spread is missing"),
        ((copy("unfinished", epochs=100),), "is not finished, 7 of 100 epochs: let it come to its end"),
        ((whole_run.folder,), "neither collapsed nor lost its solution: give a run that failed, or an EPOCH"),
        ((whole_run.folder, 8), "has no epoch 8: give one from 1 to 7"),
        ((whole_run.folder, 0), "has no epoch 0: give one from 1 to 7"),
        ((whole_run.folder, 6), "epoch 6 begins so: try an earlier EPOCH"),
        ((no_weights, 7), "weights of epoch 5"),
        ((), "usage: "),
        ((whole_run.folder, "last"), "usage: "),
    ):
        assert words in refused(monkeypatch, *arguments)
    assert not (tmp_path / "deaths.csv").exists()


def test_a_replay_is_added_to_the_others_which_stay_as_they_are(whole_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(replay_death, "ASSETS", tmp_path)
    monkeypatch.setattr(replay_death, "failing_step", lambda steps: 3)
    path = tmp_path / "deaths.csv"
    shutil.copy(DEATHS, path)
    stopped = shutil.copytree(whole_run.folder, tmp_path / "stopped")  # by --stop-on-collapse
    edit(stopped, epochs=100, collapsed=7, failed=7, stop_on_collapse=True)
    for arguments in ((whole_run.folder, "7"), (whole_run.folder, "6"), (stopped,)):
        monkeypatch.setattr(sys, "argv", ["replay_death.py", *map(str, arguments)])
        replay_death.main()
    assert capsys.readouterr().out.splitlines()[-1] == f"12 steps of epoch 7 of {stopped} are in {path}"

    before, after = DEATHS.read_text().splitlines(), path.read_text().splitlines()
    added = [line for line in after if line.startswith("1,,cluttered,0,")]
    assert [line for line in after if line not in added] == before
    assert [line.split(",")[3:6] for line in added] == [
        ["0", str(epoch), str(step)] for epoch in (6, 7) for step in range(-8, 4)
    ]
    rows = [row for row in read_table(path) if row["seed"] == 0 and row["experiment"] == 1]
    (before, in_6), (_, in_7) = (replay_death.replay(whole_run.folder, epoch) for epoch in (6, 7))
    for row, step in zip(rows, [*before, *in_6, *in_6, *in_7], strict=True):
        assert {name: row[name] for name in replay_death.MEASURES} == pytest.approx(step, rel=1e-5)


def test_at_most_200_steps_are_kept_on_either_side(whole_run, tmp_path, monkeypatch):
    monkeypatch.setattr(replay_death, "ASSETS", tmp_path)
    steps = [{name: 0.5 for name in replay_death.MEASURES} | {"gradient": i} for i in range(938)]
    for end in (37, 500, 900):
        steps[end]["inside"] = 0.0
        for before in (0, 30):  # steps in the epoch before
            parts = steps[:before], steps[before : end + 300]
            monkeypatch.setattr(replay_death, "replay", lambda folder, epoch, parts=parts: parts)
            replay_death.add_replay(whole_run.folder, 3)
            kept = [(row["step"], row["gradient"]) for row in read_table(tmp_path / "deaths.csv")]
            assert kept == [(i - end, i) for i in range(max(0, end - 200), min(938, end + 201))]
        steps[end]["inside"] = 0.5


def test_an_epoch_in_which_the_transformer_had_failed_before_is_refused(whole_run, tmp_path, monkeypatch):
    monkeypatch.setattr(replay_death, "ASSETS", tmp_path)
    well, off = ({name: value for name in replay_death.MEASURES} for value in (0.5, 0.0))
    for before, steps in (([well, off], [off, well]), ([well, off], [well, off]), ([], [off, well])):
        monkeypatch.setattr(replay_death, "replay", lambda folder, epoch, parts=(before, steps): parts)
        assert "epoch 6 begins so: try an earlier EPOCH" in refused(monkeypatch, whole_run.folder, 6)
    monkeypatch.setattr(replay_death, "replay", lambda folder, epoch: ([off, well], [well, well]))
    assert "epoch 6 is never so: try a later EPOCH" in refused(monkeypatch, whole_run.folder, 6)
    monkeypatch.setattr(replay_death, "replay", lambda folder, epoch: ([off, well], [off, off]))
    replay_death.add_replay(whole_run.folder, 6)
    assert [row["step"] for row in read_table(tmp_path / "deaths.csv")] == [-2, -1, 0, 1]


def test_the_committed_replays_are_whole_and_begin_to_fail_at_step_0(tmp_path):
    rows, replays = read_table(DEATHS), {}
    write_table(tmp_path / "deaths.csv", [*replay_death.KEY, "step", *replay_death.MEASURES], rows)
    assert (tmp_path / "deaths.csv").read_bytes() == DEATHS.read_bytes()
    for row in rows:
        replays.setdefault(tuple(row[name] for name in replay_death.KEY), []).append(row)
    for steps in replays.values():
        first = steps[0]["step"]
        assert first >= -200 and [row["step"] for row in steps] == [*range(first, first + len(steps))]
        assert steps[replay_death.failing_step(steps)]["step"] == 0
