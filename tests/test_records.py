"""The CSV files: what is read is what was written, and which runs `assets.collect` adds, leaves out or refuses."""

import json
import shutil

import pytest
from conftest import ROOT, edit
from made_up import LASTS, run

import common
from assets import collect, records

FILES = ("runs.csv", "results.csv")


@pytest.fixture(scope="module")
def some_runs():
    return [run for run in records.read_runs() if run["experiment"] in (1, 17, 26)]


@pytest.fixture
def assets(tmp_path, some_runs):
    """A folder with some of the committed runs in CSV files."""
    folder = tmp_path / "assets"
    records.write_runs(some_runs, folder)
    return folder


def contents(folder):
    return [(folder / name).read_bytes() for name in FILES]


def edit_metrics(folder, change):
    """Gives every line of metrics.csv, a list of cells, to `change`, and writes what that returns; None is no line."""
    path = folder / "metrics.csv"
    lines = [line.split(",") for line in path.read_text().splitlines()]
    changed = [change(number, cells, lines[0]) for number, cells in enumerate(lines)]
    path.write_text("".join(",".join(cells) + "\n" for cells in changed if cells))


def without_columns(*names):
    return lambda _, cells, head: [cell for cell, name in zip(cells, head, strict=True) if name not in names]


def with_cell(epoch, column, text):
    def change(number, cells, head):
        return [text if (number, name) == (epoch, column) else cell for cell, name in zip(cells, head, strict=True)]

    return change


def copy(whole_run, tmp_path, name="run"):
    return shutil.copytree(whole_run.folder, tmp_path / "runs" / name)


def refused(log_dir, assets):
    """The one line with which runs are refused; the CSV files stay as they are."""
    before = contents(assets)
    with pytest.raises(common.RunError) as error:
        collect.collect(log_dir, assets)
    assert contents(assets) == before and "\n" not in str(error.value)
    return str(error.value)


def added(assets):
    """The runs that are not among the committed ones, which are all of the full digits, by seed."""
    return {run["seed"]: run for run in records.read_runs(assets) if run["digits"] == "embedded"}


# ---------------------------------------------------------------------------------------------------------------- files


def test_read_and_written_again_the_committed_files_are_what_they_were(tmp_path):
    runs = records.read_runs()
    records.write_runs(reversed(runs), tmp_path)
    assert contents(tmp_path) == contents(ROOT / "assets")
    assert len(runs) >= 121
    assert all({name: run[name] for name in common.summarize([])} == common.summarize(run["history"]) for run in runs)


def test_rows_replace_those_of_the_same_run_and_epoch_and_have_six_digits(tmp_path):
    path, one, other = tmp_path / "some.csv", run(LASTS, 10), run(LASTS, 9)
    five, ten = records.key_columns(one, 5), records.key_columns(one, 10)
    records.add_rows(path, [five | {"loss": 1 / 3}, five | {"loss": 2.0}])
    records.add_rows(path, [ten | {"loss": 1 / 3}, records.key_columns(other, 0) | {"loss": None, "lr": 0.01}])
    records.add_rows(path, [five | {"loss": 8.0}])
    head, *lines = path.read_text().splitlines()
    assert head == "experiment,variant,dataset,digits,limit,seed,epoch,loss,lr"
    assert lines == [
        "9,,cluttered,full,60000,0,0,,0.01",
        "10,,cluttered,full,60000,0,5,8,",
        "10,,cluttered,full,60000,0,10,0.333333,",
    ]


@pytest.mark.parametrize("written", ["\ufeff{}", "{}"])
def test_files_that_a_spreadsheet_wrote_are_read(tmp_path, written):
    path = tmp_path / "some.csv"
    path.write_bytes(records.format_table([{"seed": 3, "title": "a, b", "loss": 0.5, "data": None}]))
    wanted = records.read_table(path)
    for text in ('seed,title,loss,data\n3,"a, b",0.5,\n,,,\n', "seed;title;loss;data\r\n3;a, b;0,5;\r\n"):
        path.write_text(written.format(text), encoding="utf-8")
        assert records.read_table(path) == wanted


def test_epochs_that_a_spreadsheet_has_sorted_are_in_order_and_those_that_it_lost_are_missed(assets):
    before, path = records.read_runs(assets), assets / "results.csv"
    head, *lines = path.read_text().splitlines()
    path.write_text("\n".join([head, *sorted(lines, key=lambda line: line[::-1])]))
    assert records.read_runs(assets) == before
    path.write_text("\n".join([head, *(line for line in lines if not line.startswith("1,,cluttered,full,60000,0,"))]))
    with pytest.raises(
        common.RunError, match=r"results.csv has no epoch of \(1, None, 'cluttered', 'full', 60000, 0\)"
    ):
        records.read_runs(assets)


def test_variants_are_texts_sorted_as_numbers_and_after_them_as_words(tmp_path):
    variants = [None, "0.001", "0.02", "3", "20", "large", "unlimited"]
    records.write_runs([run(LASTS, 26, variant=variant) for variant in reversed(variants)], tmp_path)
    assert [run["variant"] for run in records.read_runs(tmp_path)] == variants


# -------------------------------------------------------------------------------------------------------------- formats


def test_a_new_setting_and_a_new_scalar_are_columns_and_older_runs_have_none(whole_run, assets, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "SETTINGS", (*records.SETTINGS, "knob"))
    monkeypatch.setattr(records, "DEFAULTS", records.DEFAULTS | {"knob": False})
    folder = copy(whole_run, tmp_path)
    edit(folder, max_motion=0.3, knob="x = 1")
    edit_metrics(folder, lambda number, cells, _: [*cells, str(number / 8) if number else "stn/new"])
    before = records.read_runs(assets)
    collect.collect(folder.parent, assets)
    (run,) = added(assets).values()
    assert (run["max_motion"], run["knob"]) == (0.3, "x = 1")
    assert [row["stn/new"] for row in run["history"]] == [number / 8 for number in range(1, 8)]
    older = [other for other in records.read_runs(assets) if records.run_key(other) != records.run_key(run)]
    for now, then in zip(older, before, strict=True):
        assert (now["max_motion"], now["knob"]) == (then["max_motion"], "False")
        assert now["history"][0]["stn/new"] is None
        assert [{name: row[name] for name in then["history"][0]} for row in now["history"]] == then["history"]


def test_a_run_of_an_older_format_is_added_beside_new_ones(whole_run, assets, tmp_path):
    """What it did not measure is None, and so is a setting that was not there yet."""
    folder, scalars = copy(whole_run, tmp_path), ("stn/spread", "stn/motion")
    edit(folder, "max_motion", "penalty", "data_dir", "data")
    collect.collect(folder.parent, assets)
    collect.collect(whole_run.folder.parent, assets)  # they are None in it: the same run
    edit(folder, seed=1)
    edit_metrics(folder, without_columns(*scalars))
    collect.collect(folder.parent, assets)
    new, old = added(assets)[0], added(assets)[1]
    for row, wanted in zip(old["history"], new["history"], strict=True):
        assert row == wanted | dict.fromkeys(scalars)
    assert records.read_folder(folder)["data_dir"] == "data"
    edit(folder, max_motion=0.1)
    assert "(max_motion was None, is 0.1)" in refused(folder.parent, assets)


# -------------------------------------------------------------------------------------------------------------- collect


def test_a_finished_run_is_added_whole_and_collected_again_changes_nothing(whole_run, assets, capsys):
    before = records.read_runs(assets)
    collect.collect(whole_run.folder.parent, assets)
    assert capsys.readouterr().out == f"{len(before) + 1} runs are in {assets / 'runs.csv'}\n"
    (run,) = added(assets).values()
    told = json.loads((whole_run.folder / "run.json").read_text())
    assert run["experiment"] == 1 and run["variant"] is None and run["limit"] == 384 and run["digits"] == "embedded"
    for name in (*records.SETTINGS, *records.FACTS, *common.summarize([])):
        assert run[name] == pytest.approx(told[name]) if isinstance(told[name], float) else run[name] == told[name]
    checkpoint = common.load_state(whole_run.folder / "checkpoint.pt")
    assert [row["epoch"] for row in run["history"]] == [*range(1, 8)]
    for row, wanted in zip(run["history"], checkpoint["history"], strict=True):
        assert {name for name in row if row[name] is not None} <= wanted.keys() <= row.keys()
        assert all(row[name] == wanted[name] or row[name] == pytest.approx(wanted[name], rel=1e-5) for name in wanted)
    once = contents(assets)
    collect.collect(whole_run.folder.parent, assets)
    assert contents(assets) == once


def shorten(folder):
    """To four epochs, as a run of so many leaves it."""
    edit_metrics(folder, lambda number, cells, _: cells if number <= 4 else None)
    edit(folder, epoch=4, epochs=4)


NO_RUN = "left out: {} holds no run of this version"
LEFT_OUT = {  # what is done to a run that runs.csv has, and what is said of it
    "not finished": (lambda folder: edit(folder, epochs=100), "left out, not finished: {}, 7 of 100 epochs"),
    "shorter": (shorten, "left out, shorter: {}, 4 epochs, of which runs.csv has 7"),
    "other numbers": (
        lambda folder: edit_metrics(folder, with_cell(3, "train/loss", "2.0")),
        "left out, another run of the same name and length is in runs.csv, with other numbers: {}",
    ),
    "another name": (
        lambda folder: edit(folder, experiment="own"),
        "left out: {} holds a run of own.py, whose script should be named classification_experiment_N.py",
    ),
    "torn": (lambda folder: (folder / "run.json").write_text("{"), NO_RUN),
    "without a setting": (lambda folder: edit(folder, "optimizer"), NO_RUN),
    "without metrics.csv": (lambda folder: (folder / "metrics.csv").unlink(), NO_RUN),
    "without an epoch": (lambda folder: edit_metrics(folder, lambda n, cells, _: cells if n < 7 else None), NO_RUN),
    "without a scalar": (lambda folder: edit_metrics(folder, without_columns("stn/inside")), NO_RUN),
}


@pytest.mark.parametrize("how", LEFT_OUT)
def test_what_is_no_further_run_is_left_out_in_one_line_and_others_are_added(whole_run, assets, tmp_path, capsys, how):
    collect.collect(whole_run.folder.parent, assets)
    kept, folder = added(assets)[0], copy(whole_run, tmp_path)
    edit(copy(whole_run, tmp_path, "whole"), seed=1)
    change, said = LEFT_OUT[how]
    change(folder)
    capsys.readouterr()
    collect.collect(folder.parent, assets)
    line, _ = capsys.readouterr().out.splitlines()
    assert line.startswith(said.format(folder))
    assert [*added(assets)] == [0, 1] and added(assets)[0] == kept


def test_a_run_that_was_stopped_at_its_collapse_is_finished(whole_run, assets, tmp_path):
    folder = copy(whole_run, tmp_path)
    edit(folder, epochs=100, stop_on_collapse=True)
    edit_metrics(folder, with_cell(7, "stn/inside", "0.01"))
    collect.collect(folder.parent, assets)
    assert added(assets)[0]["epoch"] == added(assets)[0]["collapsed"] == 7


def test_a_longer_run_replaces_the_shorter(whole_run, assets, tmp_path):
    short = copy(whole_run, tmp_path)
    shorten(short)
    for folder, epochs in ((short, 4), (whole_run.folder, 7)):
        collect.collect(folder.parent, assets)
        assert added(assets)[0]["epoch"] == len(added(assets)[0]["history"]) == epochs


def test_an_epoch_that_run_json_does_not_know_of_yet_is_not_read(whole_run, assets, tmp_path):
    folder = copy(whole_run, tmp_path)
    edit(folder, epoch=6, epochs=6)  # it was killed between the two files
    collect.collect(folder.parent, assets)
    assert added(assets)[0]["epoch"] == 6


def test_a_run_with_other_settings_or_code_than_itself_or_another_seed_is_refused(whole_run, assets, tmp_path):
    collect.collect(whole_run.folder.parent, assets)
    folder, script = copy(whole_run, tmp_path, "z_other"), "code/classification_experiment_1.py"
    edit(copy(whole_run, tmp_path, "a_third"), seed=3)  # comes first, and is not added
    told = json.loads((folder / "run.json").read_text())
    for seed, which in ((0, "that run"), (1, "seed 0 of that setting")):
        for change, words in (
            ({"optimizer": "SGD(lr=0.02)"}, "optimizer was SGD(lr=0.01), is SGD(lr=0.02)"),
            ({"data": 5}, f"data was {told['data']}, is 5"),
            ({"transformer": "class Squashed: ..."}, "transformer was SpatialTransformer, is class Squashed: ..."),
        ):
            edit(folder, **told | change | {"seed": seed})
            line = refused(folder.parent, assets)
            assert f"{folder} has other settings than {which} in runs.csv ({words}): nothing added" in line
    edit(folder, **told)
    edit(folder.parent / "a_third", seed=2)
    text = (folder / script).read_text()
    (folder / script).write_text(text.replace("mean=0.1307", "mean=0.1307 + 0"))
    assert "`run_experiment(mean=0.1307, std=" in refused(folder.parent, assets)


def test_a_folder_without_runs_is_refused_in_one_line(whole_run, assets, tmp_path):
    (tmp_path / "file").write_text("")
    for log_dir in (tmp_path / "nowhere", tmp_path, tmp_path / "file", whole_run.folder):
        line = refused(log_dir, assets)
        assert f"{log_dir} holds no run folders: give the folder that they are in" in line


def test_the_runs_of_a_loop_are_told_apart_by_their_variants(loop_runs, assets):
    for _ in range(2):
        collect.collect(loop_runs, assets)
        runs = [run for run in records.read_runs(assets) if (run["experiment"], run["limit"]) == (26, 384)]
        assert [run["variant"] for run in runs] == ["0.03", "0.1", "0.3", "1", "3", "unlimited"]
        assert [run["max_motion"] for run in runs] == [0.03, 0.1, 0.3, 1, 3, None]
