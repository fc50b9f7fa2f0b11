"""By what the two failures are judged, as it was fixed before the runs: values of runs that nobody trained."""

import math

import numpy as np
import pytest
from made_up import LASTS, LOSES, OFF, OPTIONAL_TAGS, WELL, history, rows, run, without

from assets import study, tables

RISING = [(2.0, 10.0 * i, 0.9) for i in range(1, 11)]  # 50 % in epoch 5


def with_motion(rows, *motions):
    """The rows with a motion each; the last of the motions for all that follow."""
    padded = [*motions, *[motions[-1]] * (len(rows) - len(motions))]
    return [row | {"stn/motion": motion} for row, motion in zip(rows, padded, strict=False)]


def test_a_runs_motion_is_the_median_over_five_epochs_from_half_of_the_digits_right_on():
    rows = with_motion(history(*RISING), 9, 9, 9, 9, 0.1, 0.5, 0.3, 0.2, 0.4, 9)
    assert [row["epoch"] for row in study.judged_epochs(run(rows))] == [5, 6, 7, 8, 9]
    assert study.judged_median(run(rows), "stn/motion") == 0.3
    older = [{name: value for name, value in row.items() if name != "stn/motion"} for row in rows]
    assert study.judged_median(run(older), "stn/motion") is None


def test_of_a_run_that_fails_before_it_has_those_it_is_that_of_the_last_five_before():
    slow = [(2.3, 11.0, 0.9)] * 8
    rows = with_motion(history(*slow, *[OFF] * 92), 1, 2, 3, 4, 5, 6, 7, 8, 100)
    assert run(rows)["failed"] == 9 and [row["epoch"] for row in study.judged_epochs(run(rows))] == [4, 5, 6, 7, 8]
    assert study.judged_median(run(rows), "stn/motion") == 6
    soon = with_motion(history(*slow[:2], *[OFF] * 98), 1, 2, 100)
    assert study.judged_median(run(soon), "stn/motion") == 1.5  # as many as there are
    cut_short = with_motion(history(*RISING[:8], *[OFF] * 92), *range(1, 9), 100)  # 50 % in epoch 5, failed in 9
    assert study.judged_median(run(cut_short), "stn/motion") == 6
    assert study.judged_median(run(history(*[OFF] * 100)), "stn/motion") is None  # failed in epoch 1


def test_the_localization_nets_rate_is_read_from_the_optimizer():
    rates = {
        "SGD(lr=0.01)": 0.01,
        "SGD(lr=0.0003, momentum=0.9 on stn; lr=0.01, momentum=0.9 on classifier)": 0.0003,
        "SGD(lr=0.01 on classifier; lr=0.002 on stn)": 0.002,
        "SGD(lr=0.0009 on stn.localization.0.weight, classifier.0.weight; lr=0.01 on stn.fc_loc)": 0.01,
    }
    assert {optimizer: study.localization_rate(optimizer) for optimizer in rates} == rates


def test_what_became_of_a_run():
    last = [{"stn/spread": 0.009}] * 3
    one_map = [*LASTS[:97], *(row | spread for row, spread in zip(LASTS[97:], last, strict=True))]
    almost = [*one_map[:97], one_map[97] | {"stn/spread": 0.011}, *one_map[98:]]
    out = [*LASTS[:99], LASTS[99] | {"stn/scale": 1.11}]
    assert study.fate(run(LASTS)) == "lasts" and study.fate(run(LOSES)) == "failed"
    assert study.fate(run(one_map)) == "one map" and study.fate(run(almost)) == "lasts"
    assert study.fate(run(one_map, dataset="mnist")) == "lasts"  # plain digits need no following
    assert study.fate(run(out, dataset="mnist")) == "zoomed out" and study.fate(run(out)) == "lasts"
    late = run(history(*[WELL] * 120, *[OFF] * 30))
    assert late["failed"] == 121 and study.fate(late) == "lasts"  # within 100 epochs


def test_of_a_short_run_that_did_not_fail_its_settings_share_counts():
    longer = [run(LASTS, seed=0), run(LOSES, seed=1), run(LOSES, seed=2), run(LOSES, seed=3)]
    short = run(LASTS[:20], experiment=17, variant="0.01", epochs=20)
    other = run(LOSES, seed=4, max_motion=0.1)  # of another setting
    assert study.failure_chance(short, [*longer, short, other]) == 0.75
    assert study.failure_chance(short, [short, other]) == 0
    failed = run(history(*[WELL] * 9, *[OFF] * 11), experiment=17, epochs=20)
    assert study.failure_chance(failed, [*longer, failed]) == 1 and study.failure_chance(longer[0], longer) == 0


def test_ranking_is_the_area_under_the_curve():
    area, low, high = study.ranking([1, 2, 3, 4, 5, 6], [0, 0, 0, 1, 1, 1])
    assert area == 1 and low == high == 1
    area, low, high = study.ranking([1, 2, 3, 4], [0, 1, 0, 1])
    assert area == 0.75 and low < 0.75 <= high  # three of four pairs
    assert study.ranking([1, 1], [0, 1])[0] == 0.5
    assert study.ranking([1, 2, 3], [0, 0.5, 1])[0] == pytest.approx(17 / 18)
    assert all(map(math.isnan, study.ranking([1, 2], [0, 0])))
    rng = np.random.default_rng(1)
    chance = study.ranking(rng.random(80), rng.random(80) < 0.5)
    assert chance[1] < 0.5 < chance[2] and 0.1 < chance[2] - chance[1] < 0.4


def test_the_table_of_doses_counts_what_its_runs_did():
    columns = {"experiment": 26, "epochs": 20, "optimizer": "Adam(lr=0.001)"}
    doses = [run(with_motion(LASTS[:20], 0.1), variant="0.1", seed=seed, max_motion=0.1, **columns) for seed in (0, 1)]
    doses += [run(LASTS[:20], variant="unlimited", **columns)]
    limited, free = rows(tables.dose(doses))
    assert limited[:5] == ["Adam 0.001", "0.1", "0 of 2", "0 of 2", "90.0, 90.0"] and limited[7] == "0.1, 0.1"
    assert free[1] == "none"


@pytest.mark.parametrize("tag", OPTIONAL_TAGS)
def test_what_older_runs_lack_is_a_dash_in_every_table(tag):
    older = without(LASTS, tag)
    runs = [run(older, experiment) for experiment in (1, 7, 9, 18)] + [run(older, 11, max_grad_norm=1)]
    runs += [run(older, 17, variant="0.1", dataset=dataset) for dataset in ("cluttered", "mnist")]
    runs += [run(older[:20], 26, variant="0.1", max_motion=0.1, epochs=20)]
    whole = [other | {"history": LASTS[: other["epochs"]]} for other in runs]
    of_runs = (tables.all_results, tables.scale_creep, tables.cures, tables.rates)
    for make in (*of_runs, tables.dose):
        lines, wanted = rows(make(runs)), rows(make(whole))
        assert len(lines) == len(wanted) > 0
        for cells, others in zip(lines, wanted, strict=True):
            assert all(cell in (other, "-", "0 of 1") for cell, other in zip(cells, others, strict=True)), make
    has_column = {"stn/scale": tables.scale_creep, "stn/spread": tables.all_results}
    has_column |= {"stn/motion": tables.dose, "stn/limited": tables.dose}
    if tag in has_column:
        assert "| - " in has_column[tag](runs[:5] + runs[7:])


def test_a_data_set_that_nobody_knows_is_shown_and_its_digits_move_about():
    made = [run(LASTS, 17, variant="0.1", dataset=dataset) for dataset in ("fashion", "mnist", "cluttered")]
    assert [line[0] for line in rows(tables.rates(made))] == ["plain", "cluttered", "fashion"]
    labels = ["17: made up", "17: made up, fashion digits", "17: made up, plain digits"]
    assert [line[0] for line in rows(tables.all_results(made))] == labels
    one_map = history(*[WELL] * 100, **{"stn/spread": 0.001, "stn/scale": 1.2})
    fates = [study.fate(run(one_map, dataset=dataset)) for dataset in ("fashion", "mnist", "enlarged")]
    assert fates == ["one map", "zoomed out", "one map"]
