"""Tables say what the CSV files do, and the pages hold the tables."""

import pytest
from conftest import ROOT
from made_up import COMES_BACK, LASTS, LOSES, OPTIONAL_TAGS, STOPPED, WELL, fails_in, history, rows, run, without

from assets import records, study, tables
from common import RunError

PAGES = ("README.md", "assets/README.md")


# --------------------------------------------------------------------------------------------------------------- tables


def test_a_new_experiment_has_its_row_whatever_its_seeds_epochs_and_data():
    new = [run(LASTS, 99, 0), run(fails_in(41, of=150), 99, 7, epochs=150)]
    others = [run(STOPPED), run(LASTS, dataset="mnist"), run(LASTS, digits="embedded"), run(LASTS[:2], limit=600)]
    others += [run(LASTS, 17, variant=rate, title=f"at {rate}") for rate in ("0.1", "0.02")]
    cells = rows(tables.all_results(new + others))
    assert [line[0] for line in cells] == [
        "1: made up, embedded digits",
        "1: made up, 600 images",
        "1: made up",
        "1: made up, plain digits",
        "17: at 0.02",
        "17: at 0.1",
        "99: made up",
    ]
    assert cells[-1][1:3] == ["1 of 2 (1 to 99 %)", "-, 41 cl"]


def test_stopped_runs_are_marked_and_have_no_end():
    ends = history(*[WELL] * 95, *[(1.0, 60.0, 0.9)] * 5, **{"stn/scale": 1.2, "stn/spread": None})
    ends[0] |= {"test/accuracy": 95.0, "stn/scale": 0.6}
    (cells,) = rows(tables.all_results([run(STOPPED), run(ends, seed=1)]))
    assert cells[2:] == [
        "40 c†, -",  # the 5 epochs of a lost solution are not there
        "87.50 (80.00 to 95.00)",
        "75.00",  # the median of five epochs at 90 and five at 60
        "1.20",  # the stopped run is never over 80 %
        "0.70 (0.60 to 0.80)",
        "1.20",
        "0.80",
        "-",
        "1, 1",
        "-, 1",
    ]
    (cells,) = rows(tables.all_results([run(STOPPED)]))
    assert cells[4] == cells[7] == cells[9] == "-"


@pytest.mark.parametrize(
    "epochs, cell", [(LASTS, "-"), (STOPPED, "40 c†"), (fails_in(40), "40 cl"), (LOSES, "51 l"), (COMES_BACK, "4 cl")]
)
def test_a_failure_says_which_event_it_was(epochs, cell):
    assert tables.failure(run(epochs)) == cell


def test_choices_have_a_row_each_and_are_compared_after_30_epochs():
    """Runs that were to have as many count; one that failed later only among all, and a shorter repeat in none."""
    better = history(*[(1.0, 95.0, 0.9)] * 95, *[(1.0, 85.0, 0.9)] * 5)
    one_map = history(*[WELL] * 100, **{"stn/spread": 0.001})
    runs = [run(STOPPED), run(fails_in(20), seed=1), run(fails_in(9, of=25), seed=2, epochs=25), run(LASTS, 99)]
    runs += [run(one_map, 9), run(LASTS[:30], 9, 1, epochs=30), run(better, 21), run(STOPPED, 28, variant="0.001")]
    assert rows(tables.choices(runs)) == [
        ["`SGD(lr=0.01)`", "1 of 2: 1 failed", "45.7 (11.3 to 80.0)", "-", "2 of 2: 2 failed"]
        + ["100", "85.0 (80.0 to 90.0)", "1"],
        ["`Adam(lr=0.001)`", "1 of 2: 1 one map", "90.0 (90.0 to 90.0)", "1", "1 of 1: 1 one map", "100", "90.0", "9"],
        ["`Adam(lr=0.001)`, leaky, `limit_motion`", "0 of 1", "95.0", "1", "0 of 1", "100", "95.0", "21"],
    ]


def test_a_range_of_one_number_is_that_number():
    assert tables.range_of([40, 30, 60]) == "30 to 60" and tables.range_of([30, 30]) == 30


def test_epochs_to_an_accuracy_are_a_median_over_all_runs():
    waits = [history(*[(1.0, 50.0, 0.9)] * wait, *[WELL] * 5) for wait in (1, 3, 8)]
    never = [run(history(*[(1.0, 50.0, 0.9)] * 10)) for _ in range(4)]
    runs = [run(epochs) for epochs in waits]
    assert [tables.epochs_to(90, some) for some in (runs, runs + never[:2], runs + never)] == ["4", "9", None]


def drifting(measured, rows, experiment=1, seed=0, **columns):
    return run([row | {"stn/drift": measured} for row in rows], experiment, seed, **columns)


def test_what_was_foretold_is_counted_by_band_and_optimizer():
    adam = {"optimizer": "Adam(lr=0.001)"}
    one_map = [row | {"stn/spread": 0.0, "stn/active": 0.01} for row in LASTS]
    zoomed_out = [row | {"stn/scale": 1.3} for row in LASTS]
    runs = [drifting(0.086, LOSES), drifting(0.2, zoomed_out, 2), drifting(0.085, LASTS, 3), drifting(0.05, LASTS, 4)]
    runs += [drifting(0.049, LASTS, 5), drifting(0.001, one_map, 6, **adam), drifting(0.3, LASTS[:20], epochs=20)]
    runs.append(run(without(LASTS, "stn/drift"), seed=9))
    larger = [row | {"stn/scale": 1.2} for row in LASTS]
    runs += [drifting(0.06, larger, 7, dataset=dataset) for dataset in ("mnist", "cluttered")]
    assert rows(tables.foretold(runs)) == [
        ["under 0.05", "Adam", "1", "0 of 1", "0 of 1", "0", "1 of 1", "1", "0 of 1", "0.0"],
        ["under 0.05", "SGD", "1", "0 of 1", "0 of 1", "0", "0 of 1", "0", "1 of 1", "0.0"],
        ["between", "SGD", "4", "0 of 4", "0 of 4", "1", "0 of 4", "0", "4 of 4", "0.0"],
        ["over 0.085", "SGD", "3", "1 of 3", "1 of 3", "0", "0 of 3", "0", "1 of 3", "2.3"],
    ]


def test_the_dose_of_drift_has_a_row_a_target():
    columns = {"experiment": 37, "epochs": 20}
    doses = [drifting(0.03, LASTS[:20], seed=seed, variant="adam_0.035", drift=0.035, **columns) for seed in (0, 1)]
    doses += [drifting(0.2, fails_in(3, of=20), variant="momentum_0.15", drift=0.15, **columns)]
    low, high = rows(tables.drift_dose(doses))
    assert low[:7] == ["adam", "0.035", "0.030, 0.030", "0 of 2", "0 of 2", "0 of 2", "90.0, 90.0"]
    assert high[:4] == ["momentum", "0.15", "0.200", "1 of 1"]


def test_steered_runs_stand_beside_the_best_rate_found_by_hand():
    slow = history(*[(1.0, 85.0, 0.9)] * 19, *[WELL] * 41)
    runs = [run(LASTS, 7), run(slow, 36, variant="adam", epochs=60), run(LASTS, 36, variant="other")]
    runs += [run(LASTS, 7, dataset="mnist")]
    cells = [[line[0], *line[2:]] for line in rows(tables.steered(runs))]
    assert cells[0] == ["36: made up", "90.0", "90.0", "90.0", "1", "20", "0.80000", "60"]
    assert [line[0] for line in cells] == ["36: made up", "7: made up", "7: made up, plain digits"]


def test_healthy_is_where_nine_tenths_of_the_good_epochs_of_lasting_runs_are():
    scales = [row | {"stn/scale": 0.2 + i / 100, "stn/drift": None} for i, row in enumerate(LASTS)]
    weak = history(*[(1.0, 79.0, 0.9)] * 100, **{"stn/scale": 0.1})
    runs = [run(scales), run(weak, seed=1), run(fails_in(90), seed=2), run(LASTS, dataset="mnist")]
    cells = {line[0]: line[1:] for line in rows(tables.healthy(runs))}
    assert cells["`scale`"] == ["0.25 to 1.1", "0.8 to 0.8"] and cells["`drift`"] == ["-", "0.8 to 0.8"]


def test_64_steps_that_all_go_one_way_lead_as_far_as_64():
    for steps in (2, 64):
        moved = {"stn/motion": 0.3, "stn/scale": 0.5, "stn/drift": steps * 0.3 / 30}  # a region of 30 pixels
        straight = [run(history(*[WELL] * 9, **moved)), run(history(*[WELL] * 9), seed=1, optimizer="Adam(lr=0.001)")]
        assert rows(tables.adding_up(straight))[0] == ["SGD", "1", "0.30", str(steps)]


@pytest.mark.parametrize("tag", OPTIONAL_TAGS)
def test_what_older_runs_lack_is_a_dash_in_every_table(tag):
    older = without(LASTS, tag)
    runs = [run(older, experiment) for experiment in (1, 18)]
    runs += [run(older, 36, variant="adam"), run(older[:20], 37, variant="adam_0.1", drift=0.1, epochs=20)]
    whole = [other | {"history": LASTS[: other["epochs"]]} for other in runs]
    for make in (tables.all_results, tables.choices, tables.drift_dose, tables.steered):
        lines, wanted = rows(make(runs)), rows(make(whole))
        assert len(lines) == len(wanted) > 0
        for cells, others in zip(lines, wanted, strict=True):
            assert all(cell in (other, "-") for cell, other in zip(cells, others, strict=True)), make
    has_column = {"stn/spread": tables.all_results, "stn/drift": tables.drift_dose}
    if tag in has_column:
        assert "| - " in has_column[tag](runs)
    assert tables.foretold(runs)


def test_a_title_of_a_users_breaks_no_row():
    (line,) = tables.all_results([run(LASTS, title="a|b\nc")]).splitlines()[2:]
    assert line.startswith("| 1: a\\|b c | 0 of 1")


def test_a_data_set_that_nobody_knows_is_shown_and_its_digits_move_about():
    made = [run(LASTS, 17, variant="0.1", dataset=dataset) for dataset in ("fashion", "mnist", "cluttered")]
    labels = ["17: made up", "17: made up, fashion digits", "17: made up, plain digits"]
    assert [line[0] for line in rows(tables.all_results(made))] == labels
    assert len(rows(tables.foretold(made))) == 1
    one_map = history(*[WELL] * 100, **{"stn/spread": 0.001, "stn/scale": 1.3})
    fates = [study.fate(run(one_map, dataset=dataset)) for dataset in ("fashion", "mnist", "enlarged")]
    assert fates == ["one map", "zoomed out", "one map"]


# ---------------------------------------------------------------------------------------------------------------- pages


def test_a_page_s_tables_are_replaced_and_nothing_else():
    text = "a\n<!-- one -->\nold | \\1\n<!-- end of one -->\nb <!-- two words -->\n<!-- two -->\n<!-- end of two -->"
    page = tables.with_tables(text, {"one": "| \\1 |\n", "two": "| y |\n", "three": ""})
    assert page == text.replace("old | \\1\n", "| \\1 |\n").replace("<!-- two -->\n", "<!-- two -->\n| y |\n")
    assert tables.with_tables(page, {"one": "| \\1 |\n", "two": "| y |\n"}) == page


@pytest.mark.parametrize("text", ["<!-- one -->\n", "<!-- end of one -->\n<!-- one -->\n"])
def test_a_place_that_is_not_whole_is_named(text):
    with pytest.raises(RunError, match="no whole place for the table one"):
        tables.with_tables(text, {"one": "| x |\n"})


def test_a_place_of_no_table_is_named():
    with pytest.raises(RunError, match="a place for a table other, which is none of one, two"):
        tables.with_tables("<!-- other -->\n<!-- end of other -->", {"one": "", "two": ""})


@pytest.fixture(scope="module")
def committed():
    return tables.make_tables()


def test_a_new_run_in_the_csv_files_is_in_the_tables_with_no_other_change(tmp_path):
    new = [run(LASTS, 9999), run(fails_in(9, of=50), 9999, 1, epochs=50)]
    records.write_runs([*records.read_runs(), *new], tmp_path)
    made = tables.make_tables(tmp_path)
    assert rows(made["all_results"])[-1][1:3] == ["0 of 1 (0 to 98 %)", "-"]  # the other is a repeat
    assert made["choices"] == tables.make_tables()["choices"]


@pytest.mark.parametrize("page", PAGES)
def test_the_pages_hold_what_the_csv_files_say(page, committed):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert "<!-- end of " in text and tables.with_tables(text, committed) == text


def test_every_table_has_its_place_in_a_page(committed):
    pages = "".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    assert [marker for marker in committed if f"<!-- {marker} -->" not in pages] == []
