"""Runs are picked and grouped by their settings."""

from made_up import LASTS, STOPPED, run

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
