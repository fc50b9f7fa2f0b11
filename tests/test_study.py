"""Statistics are what a textbook or a count by hand says, and runs are picked, grouped and judged by their settings."""

import math

import pytest
from made_up import COMES_BACK, LASTS, LOSES, STOPPED, WELL, history, run
from scipy import stats

from assets import study, survival

# ----------------------------------------------------------------------------------------------------- times to failure


def test_peto_s_figures_are_those_of_freireich_s_leukemia_trial():
    treated = [6, 6, 6, 7, 10, 13, 16, 22, 23], [6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35]
    treated = [(week, True) for week in treated[0]] + [(week, False) for week in treated[1]]
    placebo = [1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23]
    scores, excess, variance = survival.log_rank(treated, [(week, True) for week in placebo])
    assert 9 - excess == pytest.approx(19.25, abs=0.005)  # relapses expected of the treated
    assert excess**2 / variance == pytest.approx(16.79, abs=0.005)  # the trial's log-rank chi-squared
    assert sum(scores) == pytest.approx(0)


def test_the_log_rank_statistic_is_scipy_s():
    first, second = [(4, True), (4, True), (9, False), (7, True)], [(7, True), (12, True), (20, False)]
    _, excess, variance = survival.log_rank(first, second)
    censored = (
        stats.CensoredData(
            uncensored=[t for t, failed in times if failed], right=[t for t, failed in times if not failed]
        )
        for times in (first, second)
    )
    assert excess / math.sqrt(variance) == pytest.approx(stats.logrank(*censored).statistic)


def test_p_is_the_share_of_all_ways_to_deal_the_runs_within_strata():
    early, late = ([(epoch, True) for epoch in epochs] for epochs in ((10, 20), (30, 40)))
    p, (ratio, low, high) = survival.compare_times([(early, late)])
    assert p == pytest.approx(2 / 6)  # of 6 ways, this one and its mirror image
    # at risk 4, 3, 2, 1 of which 2, 1, 0, 0 early: E = 1/2 + 1/3, V = 1/4 + 2/9
    assert ratio == pytest.approx(math.exp((2 - 5 / 6) / (17 / 36)))
    assert (low, high) == pytest.approx([ratio * math.exp(sign * 1.96 / math.sqrt(17 / 36)) for sign in (-1, 1)])
    assert survival.compare_times([(early, late)] * 2)[0] == pytest.approx(2 / 36)
    assert survival.compare_times([(early, late), (late, early)])[0] == 1
    p, (mirrored, *_) = survival.compare_times([(late, early)])
    assert p == pytest.approx(2 / 6) and mirrored == pytest.approx(1 / ratio)


def test_where_none_fails_nothing_is_known():
    p, (ratio, low, high) = survival.compare_times([([(100, False)], [(100, False)])])
    assert (p, low, high) == (1, 0, math.inf) and math.isnan(ratio)


def test_runs_are_censored_at_their_end_and_never_carried_on():
    runs = [run(LASTS), run(STOPPED), run(LASTS[:60]), run(LOSES), run(COMES_BACK)]
    assert study.failure_times(runs) == [(100, False), (40, True), (60, False), (51, True), (4, True)]
    assert study.failure_times([run(LOSES)], factor=2) == [(100, False)]
    edge = history(*[WELL] * 9, (1.0, 90.0, 0.02))
    assert study.failure_times([run(edge)], bound=0.01) == [(10, False)]
    assert (study.count_failed(runs), study.count_failed(runs, factor=2)) == (3, 2)


# ----------------------------------------------------------------------------------------------------------------- runs


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


def test_plain_runs_are_those_with_nothing_else_changed():
    plain = run(LASTS, mean=0, std=1, fill=-0.4)
    changes = {"transformer": "class Squashed", "max_grad_norm": 1, "max_motion": 0.1, "penalty": "a distance"}
    changes |= {"dataset": "mnist", "digits": "embedded", "limit": 600, "optimizer": "SGD(lr=0.01, momentum=0.9)"}
    assert study.plain_runs(study.SGD, [plain, *(plain | {name: changes[name]} for name in changes)]) == [plain]


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


# --------------------------------------------------------------------------------------------------------------- events


def test_a_run_is_still_from_where_its_map_changes_no_more_if_for_three_epochs():
    moves = [row | {"stn/scale": 1 + row["epoch"] % 2 / 10} for row in LASTS]
    assert study.still_from(moves) is None
    assert study.still_from(moves[:50] + LASTS[50:]) == 51
    assert study.still_from(moves[:97] + LASTS[97:]) == 98 and study.still_from(moves[:98] + LASTS[98:]) is None
