"""Runs are picked and grouped by their settings, and judged by what was fixed before they ran."""

import math

import numpy as np
import pytest
from made_up import LASTS, LOSES, OFF, STOPPED, WELL, history, run, without

from assets import study


def test_runs_are_picked_by_their_columns_and_a_missing_one_is_none():
    runs = [run(LASTS), run(LASTS, 2), run(LASTS, seed=1, max_motion=0.1), run(LASTS, dataset="mnist")]
    assert study.pick(runs, **study.STANDARD, experiment=1) == [runs[0], runs[2]]
    assert study.pick(runs, max_motion=None) == [runs[0], runs[1], runs[3]]


def test_runs_that_differ_by_their_seed_alone_are_a_group():
    runs = [run(LASTS, seed=10), run(LASTS, 17, variant="0.01"), run(LASTS, seed=9), run(LASTS, dataset="mnist")]
    runs += [run(LASTS, 17, variant="0.002"), run(LASTS, 17, 1, variant="0.01")]
    groups = [[(r["experiment"], r["variant"], r["seed"]) for r in seeds] for seeds in study.group(runs)]
    assert groups == [
        [(1, None, 9), (1, None, 10)],
        [(1, None, 0)],
        [(17, "0.002", 0)],
        [(17, "0.01", 0), (17, "0.01", 1)],
    ]


def test_a_repeat_over_fewer_epochs_is_left_out_and_a_run_that_was_stopped_is_not():
    runs = [run(LASTS), run(STOPPED, seed=1), run(LASTS[:30], seed=5, epochs=30), run(LASTS[:30], 2, epochs=30)]
    kept = study.without_repeats(runs)
    assert [(r["experiment"], r["seed"]) for r in kept] == [(1, 0), (1, 1), (2, 0)]


def test_the_variants_of_experiment_17_are_rates():
    runs = [run(LASTS, 17, seed, variant=variant) for variant in ("0.1", "0.02") for seed in (0, 1)]
    runs += [run(LASTS, 17, variant="0.02", dataset="mnist"), run(LASTS, 17, variant="0.02", limit=600)]
    found = study.by_rate([*runs, run(LASTS, 26, variant="0.02")])
    assert list(found) == ["mnist", "cluttered"] and list(found["cluttered"]) == [0.02, 0.1]
    assert found["cluttered"][0.02] == runs[2:4] and found["mnist"][0.02] == [runs[4]]


# --------------------------------------------------------------------------------------------- what became of a run

RISING = [(2.0, 10.0 * i, 0.9) for i in range(1, 11)]  # 50 % in epoch 5


def with_motion(rows, *motions):
    """The rows with a motion each; the last of the motions for all that follow."""
    padded = [*motions, *[motions[-1]] * (len(rows) - len(motions))]
    return [row | {"stn/motion": motion} for row, motion in zip(rows, padded, strict=False)]


def test_a_runs_motion_is_the_median_over_five_epochs_from_half_of_the_digits_right_on():
    rows = with_motion(history(*RISING), 9, 9, 9, 9, 0.1, 0.5, 0.3, 0.2, 0.4, 9)
    assert [row["epoch"] for row in study.judged_epochs(run(rows))] == [5, 6, 7, 8, 9]
    assert study.judged_median(run(rows), "stn/motion") == 0.3
    assert study.judged_median(run(without(rows, "stn/motion")), "stn/motion") is None


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
