"""Tables say what the CSV files do, and the pages hold the tables."""

from functools import partial

import pytest
from conftest import ROOT
from made_up import LASTS, LOSES, OPTIONAL_TAGS, STOPPED, WELL, fails_in, history, rows, run, without

from assets import study, tables
from assets.speed import EVERYBODYS, THIS_PROJECTS
from common import RunError

# --------------------------------------------------------------------------------------------------------------- tables


def test_a_new_experiment_has_its_row_whatever_its_seeds_epochs_and_data():
    new = [run(LASTS, 99, 0), run(fails_in(41, of=150), 99, 7, epochs=150)]
    others = [run(STOPPED), run(LASTS, dataset="mnist"), run(LASTS, digits="embedded"), run(LASTS[:2], limit=600)]
    cells = rows(tables.all_results(new + others))
    labels = ["1: made up, embedded digits", "1: made up, 600 images", "1: made up", "1: made up, plain digits"]
    assert [line[0] for line in cells] == [*labels, "99: made up"]
    assert cells[-1][1:3] == ["1 of 2 (1 to 99 %)", "-, 41 cl"]


def drifting(measured, rows, experiment=1, seed=0, **columns):
    return run([row | {"stn/drift": measured} for row in rows], experiment, seed, **columns)


def test_what_was_foretold_is_counted_by_rate_band_and_optimizer():
    adam = {"optimizer": "Adam(lr=0.001)"}
    one_map = [row | {"stn/spread": 0.0, "stn/active": 0.01} for row in LASTS]
    zoomed_out = [row | {"stn/scale": 1.3} for row in LASTS]
    runs = [drifting(0.086, LOSES), drifting(0.2, zoomed_out, 2), drifting(0.085, LASTS, 3), drifting(0.05, LASTS, 4)]
    runs += [drifting(0.049, LASTS, 5), drifting(0.001, one_map, 6, **adam), drifting(0.3, LASTS[:20], epochs=20)]
    runs.append(run(without(LASTS, "stn/drift"), seed=9))
    larger = [row | {"stn/scale": 1.2} for row in LASTS]
    runs += [drifting(0.06, larger, 7, dataset=dataset) for dataset in ("mnist", "cluttered")]
    runs.append(drifting(0.04, LASTS, 8, drift=0.035))
    assert rows(tables.foretold(runs)) == [
        ["by hand", "under 0.05", "Adam", "1", "0 of 1", "0 of 1", "0", "1 of 1", "1", "0 of 1", "0.0"],
        ["by hand", "under 0.05", "SGD", "1", "0 of 1", "0 of 1", "0", "0 of 1", "0", "1 of 1", "0.0"],
        ["by hand", "between", "SGD", "4", "0 of 4", "0 of 4", "1", "0 of 4", "0", "4 of 4", "0.0"],
        ["by hand", "over 0.085", "SGD", "3", "1 of 3", "1 of 3", "0", "0 of 3", "0", "1 of 3", "2.3"],
        ["`DriftLR`", "under 0.05", "SGD", "1", "0 of 1", "0 of 1", "0", "0 of 1", "0", "1 of 1", "0.0"],
    ]


def test_drift_stands_beside_the_rate_that_had_it():
    slow, fast = ([row | {"stn/rate": rate} for row in LASTS] for rate in (0.001, 0.01))
    falls = [row | {"stn/drift": 0.09 if row["epoch"] <= 10 else 0.05} for row in fast]
    runs = [run(falls), drifting(0.02, slow, 10), drifting(0.04, slow, 10, 1)]
    runs += [drifting(0.5, slow, 30, variant="leaky_limited"), drifting(0.5, slow, 36, drift=0.035)]
    assert rows(tables.drift_by_rate(runs)) == [
        ["SGD", "cluttered", "0.001", "0.030 (0.020 to 0.040)", "0.030 (0.020 to 0.040)", "0 of 2", "100"],
        ["SGD", "cluttered", "0.01", "0.090", "0.050", "0 of 1", "100"],
    ]


def test_a_steered_run_has_the_time_of_a_step_where_that_was_measured():
    runs = [run(LASTS, 36, variant="adam"), run(LASTS, 10), run(LASTS, 39, variant="adam")]
    timed = {"device": "cpu", "loop": THIS_PROJECTS, "experiment": 36, "title": "made up"}
    others = [timed | {"experiment": 10, "title": "another"}, timed | {"loop": EVERYBODYS}, timed | {"device": "cuda"}]
    speed = [timed | {"seconds_a_step": seconds} for seconds in (0.03, 0.04, 0.08)]
    speed += [other | {"seconds_a_step": 1.0} for other in others]
    assert [line[-2] for line in rows(tables.steered(runs, speed))] == ["40.0", "-", "-"]


@pytest.mark.parametrize("tag", OPTIONAL_TAGS)
def test_what_older_runs_lack_is_a_dash_in_every_table(tag):
    older = without(LASTS, tag)
    runs = [run(older, experiment) for experiment in (1, 18)]
    runs += [run(older, 36, variant="adam"), run(older[:20], 37, variant="adam_0.1", drift=0.1, epochs=20)]
    whole = [other | {"history": LASTS[: other["epochs"]]} for other in runs]
    for make in (tables.all_results, tables.choices, tables.drift_dose, partial(tables.steered, speed_rows=[])):
        lines, wanted = rows(make(runs)), rows(make(whole))
        assert len(lines) == len(wanted) > 0
        for cells, others in zip(lines, wanted, strict=True):
            assert all(cell in (other, "-") for cell, other in zip(cells, others, strict=True)), make
    has_column = {"stn/spread": tables.all_results, "stn/drift": tables.drift_dose}
    if tag in has_column:
        assert "| - " in has_column[tag](runs)
    assert tables.foretold(runs) and tables.drift_by_rate(runs)


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


NOT_WHOLE = "<!-- one -->\n", "<!-- end of one -->\n<!-- one -->\n", "<!-- other -->\n<!-- end of other -->"


@pytest.mark.parametrize("text", NOT_WHOLE)
def test_a_place_that_is_not_whole_or_of_no_table_is_named(text):
    with pytest.raises(RunError, match="place for (the table one: it is|a table other, which is none of one)"):
        tables.with_tables(text, {"one": "| x |\n"})


def test_the_pages_hold_what_the_csv_files_say_and_every_table_has_its_place():
    committed = tables.make_tables()
    pages = [(ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "assets/README.md")]
    for text in pages:
        assert "<!-- end of " in text and tables.with_tables(text, committed) == text
    assert [marker for marker in committed if f"<!-- {marker} -->" not in "".join(pages)] == []
