"""Runs are picked and grouped by their settings, and judged by what was fixed before they ran."""

from made_up import LASTS, LOSES, OFF, STOPPED, WELL, history, run, without

from assets import study


def test_runs_that_differ_by_their_seed_alone_are_a_group():
    runs = [run(LASTS, seed=10), run(LASTS, 17, variant="0.01"), run(LASTS, seed=9), run(LASTS, dataset="mnist")]
    runs += [run(LASTS, 17, variant="0.002"), run(LASTS, 17, 1, variant="0.01")]
    groups = [[(r["variant"], r["seed"]) for r in seeds] for seeds in study.group(runs)]
    assert groups == [[(None, 9), (None, 10)], [(None, 0)], [("0.002", 0)], [("0.01", 0), ("0.01", 1)]]


def test_a_repeat_over_fewer_epochs_or_run_on_is_left_out_and_a_run_that_was_stopped_is_not():
    runs = [run(LASTS), run(STOPPED, seed=1), run(LASTS[:30], seed=5, epochs=30), run(LASTS[:30], 2, epochs=30)]
    longer, run_on = run(LASTS * 2, seed=7, epochs=200), run(LASTS, 9, seed=5)
    kept = study.without_repeats([*runs, longer, run_on])
    assert [(r["experiment"], r["seed"]) for r in kept] == [(1, 0), (1, 1), (1, 7), (2, 0)]
    assert study.without_repeats([runs[0], longer]) == [longer]  # of as many of each, the longer


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


def ending(rows, epochs=3, **scalars):
    """The rows, with these scalars in the last epochs."""
    scalars = {f"stn/{name}": value for name, value in scalars.items()}
    return [*rows[:-epochs], *(row | scalars for row in rows[-epochs:])]


def test_what_became_of_a_run():
    one_map = ending(LASTS, spread=0.009)
    assert study.fate(run(LASTS)) == "lasts" and study.fate(run(LOSES)) == "failed"
    assert study.fate(run(one_map)) == "one map" and study.fate(run(ending(one_map, 1, spread=0.011))) == "lasts"
    assert study.fate(run(one_map, dataset="mnist")) == "lasts"  # plain digits need no following
    for dataset in ("mnist", "cluttered"):
        assert study.fate(run(ending(LASTS, 1, scale=1.26), dataset=dataset)) == "zoomed out"
        assert study.fate(run(ending(LASTS, 1, scale=1.25), dataset=dataset)) == "lasts"
    late = run(history(*[WELL] * 120, *[OFF] * 30))
    assert late["failed"] == 121 and study.fate(late) == "lasts"  # within 100 epochs


def test_one_map_of_dead_units_is_told_apart():
    dead, alive = (run(ending(LASTS, spread=0.009, active=active)) for active in (0.049, 0.05))
    assert study.has_dead_units(dead) and not study.went_wrong(dead)
    assert not study.has_dead_units(alive) and study.went_wrong(alive)
    unknown = run(without(ending(LASTS, spread=0.009), "stn/active"))
    assert not study.has_dead_units(unknown) and study.went_wrong(unknown)
    assert not study.has_dead_units(run(ending(LASTS, active=0.0)))  # as far as can be seen, it follows


def test_of_a_short_run_that_did_not_go_wrong_its_settings_share_counts():
    longer = [run(LASTS, seed=0), run(LOSES, seed=1), run(LOSES, seed=2), run(STOPPED, seed=3)]
    groups = {"optimizer": "SGD(lr=0.01 on stn; lr=0.01 on classifier)"}
    short = run(LASTS[:20], experiment=17, variant="0.01", epochs=20, **groups)
    others = [run(LOSES, seed=4, max_motion=0.1)]  # of other settings
    others += [run(LOSES, seed=4, optimizer=f"SGD(lr=0.01 on stn{rest})") for rest in ("", "; lr=0.1 on classifier")]
    assert study.chance(short, [*longer, short, *others]) == 0.75
    assert study.chance(short, [short, *others]) == 0
    failed = run(history(*[WELL] * 9, *[OFF] * 11), experiment=17, epochs=20)
    assert study.chance(failed, [*longer, failed]) == 1 and study.chance(longer[0], longer) == 0
