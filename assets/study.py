"""What the tables and the figures read from the CSV files here: runs and their events, failures compared, replays, and
solutions that were handed over."""

import csv
import math
import sys
from itertools import combinations, groupby, pairwise
from pathlib import Path
from statistics import median

import numpy as np
from scipy import stats

ASSETS = Path(__file__).parent
sys.path[:0] = [str(ASSETS.parent), str(ASSETS)]
from collect import KEY, SETTINGS, key_of, order, read_table, solution_of  # noqa: E402

from common import RunError, collapsed, failed  # noqa: E402

PLAIN_SGD, PLAIN_ADAM = "SGD(lr=0.01)", "Adam(lr=0.0001)"  # one learning rate for all, as collect.py has them
ONE_MAP = 0.01  # spread under which the regions' centres are one place for all images

# ----------------------------------------------------------------------------------------------------------------- runs


def read_deaths(assets):
    """Returns the replays of deaths.csv, a list of the steps of each, dicts of its columns."""
    path = assets / "deaths.csv"
    rows = [{"variant": None} | row for row in read_table(path)] if path.exists() else []
    rows = [row | {"dataset": row.get("dataset") or "cluttered"} for row in rows]
    names = ("experiment", "variant", "dataset", "seed", "epoch")
    return [list(steps) for _, steps in groupby(rows, key=lambda row: [row[name] for name in names])]


def read_published(assets):
    """Returns {experiment: history} of the document's published runs, with test accuracy and test loss."""
    published = {}
    with open(assets / "published_runs.csv", newline="") as file:
        for row in csv.DictReader(file):
            figures = {"test/accuracy": float(row["test_accuracy_percent"]), "test/loss": float(row["test_loss"])}
            history = published.setdefault(int(row["experiment"].rpartition("_")[2]), [])
            history.append({"epoch": int(row["epoch"])} | figures)
    return published


def group(runs):
    """Returns the runs as lists, those that differ by their seed alone in one, in order."""
    return [list(seeds) for _, seeds in groupby(sorted(runs, key=order), key=lambda run: key_of(run)[:-1])]


def standard(runs):
    """The runs on all cluttered canvases of the full digits: what experiments are compared by."""
    return [run for run in runs if (run["dataset"], run["digits"], run["limit"]) == ("cluttered", "full", 60000)]


def of(number, runs):
    return [run for run in standard(runs) if run["experiment"] == number]


def plain(optimizer, runs):
    """The standard runs with that optimizer and nothing else changed but the normalization and the fill."""
    nothing = (optimizer, "SpatialTransformer", None)
    return [r for r in standard(runs) if (r["optimizer"], r["transformer"], r["max_grad_norm"]) == nothing]


def explored(run):
    """Whether it is one of the SGD runs that the questions came from: they cannot answer them as well."""
    return run["experiment"] in (1, 2, 4, 5, 6) and run["seed"] <= 3


def without_beginnings(runs):
    """The runs but for those that are the first epochs of a longer one, as those of 17 at 0.001 are of 10's."""
    longest = {}
    for run in sorted(runs, key=lambda run: len(run["history"])):
        longest[tuple(run[name] for name in (*KEY[2:], *SETTINGS))] = run
    return list(longest.values())


# --------------------------------------------------------------------------------------------------------------- events


def stopped(run):
    """Whether a run ended before its last epoch: what it would have come to is not known."""
    return len(run["history"]) < run["epochs"]


def best(history):
    """The row of the highest test accuracy."""
    return max(history, key=lambda row: row["test/accuracy"])


def reaches(history, accuracy):
    """First epoch with that test accuracy in percent, or None."""
    return next((row["epoch"] for row in history if row["test/accuracy"] >= accuracy), None)


def collapsed_epochs(history):
    """The epochs in which a run is collapsed: it may come back."""
    return [row["epoch"] for row in history if collapsed([row])]


def still_from(history):
    """First epoch from which on scale and inside are the same to the run's end, or None if for under three epochs."""
    seen = [(row["stn/scale"], row["stn/inside"]) for row in history]
    first = next(i for i in range(len(seen)) if set(seen[i:]) == {seen[-1]})
    return first + 1 if len(seen) - first >= 3 else None


def one_class_from(history):
    """First epoch from which on the accuracy rounds to 11.3 or 11.4 %, that of naming one class, to the end, or None.

    For the published runs, which did not record `inside`.
    """
    last = max((row["epoch"] for row in history if not 11.25 <= row["test/accuracy"] < 11.45), default=0)
    return last + 1 if last < len(history) else None


def count_failed(runs, **definition):
    return sum(failed(run["history"], **definition) is not None for run in runs)


def failure_times(runs, **definition):
    """Returns (epoch, True) for a run that failed in it, (last epoch, False) for one that had not by then."""
    epochs = [(failed(run["history"], **definition), len(run["history"])) for run in runs]
    return [(last, False) if epoch is None else (epoch, True) for epoch, last in epochs]


# ---------------------------------------------------------------------------------------------------- failures compared


def log_rank(first, second):
    """Compares the times to failure of two groups, lists of (epoch, whether it failed then).

    Returns each run's log-rank score, those of the first group first; the first group's failures less those expected if
    both failed alike, O - E, which is the sum of its scores; and the hypergeometric variance V of that. A score is 1
    for a failure less the hazard up to then (Nelson and Aalen's, of both groups): Peto and Peto, Asymptotically
    Efficient Rank Invariant Test Procedures, J. R. Statist. Soc. A 135, 1972.
    """
    times = [*first, *second]
    hazards, variance = {}, 0
    for epoch in sorted({epoch for epoch, event in times if event}):
        at_risk, mine = (sum(time >= epoch for time, _ in some) for some in (times, first))
        events, share = times.count((epoch, True)), mine / at_risk
        hazards[epoch] = events / at_risk
        variance += events * share * (1 - share) * (at_risk - events) / max(at_risk - 1, 1)
    scores = [event - sum(hazards[epoch] for epoch in hazards if epoch <= time) for time, event in times]
    return scores, sum(scores[: len(first)]), variance


def compare_times(strata, **definition):
    """Compares the times to failure of two groups of runs within strata, a list of (runs of one, runs of the other).

    Returns the exact two-sided p and Peto's hazard ratio, one over other, with its 95 % interval, (ratio, low, high).
    p is the share of all ways to deal the runs of each stratum to its two groups whose O - E, summed over the strata,
    is as far from 0 as the one seen. Log-rank scores and no others, because theirs is the test that goes with the
    ratio exp((O - E) / V): p and interval then speak of the same number. The interval is the usual approximation,
    exp((O - E) / V +- 1.96 / sqrt(V)), and a rough one for so few runs: where the two disagree, p counts.
    """
    sums, distance, variance = np.zeros(1), 0, 0
    for one, other in strata:
        scores, excess, v = log_rank(failure_times(one, **definition), failure_times(other, **definition))
        dealt = [sum(some) for some in combinations(scores, len(one))]
        sums, distance, variance = np.add.outer(sums, dealt).ravel(), distance + excess, variance + v
    p = float((abs(sums) >= abs(distance) - 1e-9).mean())
    if variance == 0:
        return p, (math.nan, 0, math.inf)  # nothing failed, or nothing is left to compare with
    middle, width = distance / variance, 1.96 / math.sqrt(variance)
    return p, tuple(math.exp(value) for value in (middle, middle - width, middle + width))


def interval(count, total):
    """Clopper and Pearson's exact 95 % interval of a fraction."""
    return tuple(stats.binomtest(count, total).proportion_ci(0.95, method="exact"))


def fisher(one, other, **definition):
    """Fisher's exact two-sided p that as many of one group of runs fail as of another."""
    counts = [count_failed(runs, **definition) for runs in (one, other)]
    table = [[count, len(runs) - count] for count, runs in zip(counts, (one, other), strict=True)]
    return stats.fisher_exact(table).pvalue


# -------------------------------------------------------------------------------------------------------------- replays

GRADIENT = "gradient of the localization net"
BEFORE, NEAR = 200, 60  # steps: what a gradient is ranked among, and how far before step 0 the largest drop may lie


def run_of(steps, runs):
    """The run of a replay. Raises RunError if it is not there."""
    keys = ("experiment", "variant", "dataset", "seed")
    wanted = [steps[0][key] for key in keys]
    for run in runs:
        if [run[key] for key in keys] == wanted and (run["digits"], run["limit"]) == ("full", 60000):
            return run
    replayed = ", ".join(f"{key} {value}" for key, value in zip(keys, wanted, strict=True) if value is not None)
    raise RunError(f"deaths.csv holds a replay of {replayed}, but runs.csv no such run: add it with collect.py")


def best_before(steps, runs):
    """The best accuracy of a replay's run before the replayed epoch, in percent."""
    earlier = run_of(steps, runs)["history"][: steps[0]["epoch"] - 1]
    return max((row["test/accuracy"] for row in earlier), default=0)


def what_fell(steps):
    """The figure under 0.01 in step 0 that made it the failing one, "active" (hidden units), "inside" or "spread"."""
    failing = next(step for step in steps if step["step"] == 0)
    return next(figure for figure in ("active", "inside", "spread") if failing[figure] < 0.01)


def largest_drop(steps, figure):
    """The step, -60 to 0, in which a figure falls furthest from the step before, and by how much."""
    pairs = [pair for pair in pairwise(steps) if -NEAR <= pair[1]["step"] <= 0]
    before, after = max(pairs, key=lambda pair: pair[0][figure] - pair[1][figure])
    return after["step"], before[figure] - after[figure]


def rank_before(steps, at):
    """Rank of the gradient in the step before step `at` among the 200 before it, their number, and what it is over
    their median. 1 is the largest."""
    before = [step[GRADIENT] for step in steps if at - BEFORE <= step["step"] < at]
    last, usual = before[-1], median(before)
    return 1 + sum(norm > last for norm in before), len(before), last / usual if usual else math.inf


# ------------------------------------------------------------------------------------------------------------ solutions

KEPT = 5  # points of accuracy that a solution may lose while it counts as kept


def solutions(rows):
    """Yields of each solution handed over its first row and two dicts, {(classifier's rate, rate): accuracies}.

    The first dict's accuracies are those after the last step, the second's the lowest on the way, in percent, one a
    shuffle.
    """
    for _, some in groupby(rows, key=solution_of):
        steps, left, lowest = list(some), {}, {}
        for (*rates, _), curve in groupby(steps, key=lambda row: (row["classifier_rate"], row["rate"], row["shuffle"])):
            accuracies = [row["test/accuracy"] for row in curve]
            left.setdefault(tuple(rates), []).append(accuracies[-1])
            lowest.setdefault(tuple(rates), []).append(min(accuracies))
        yield steps[0], left, lowest


def curvatures(solution, sharpness):
    """Returns {step: curvature} of a solution, out of the rows of sharpness.csv."""
    where = solution_of(solution)
    return {row["step"]: row["curvature"] for row in sharpness if solution_of(row) == where}


READINGS = "smallest that does not keep it", "smallest at which most shuffles fall under 50 % on the way"


def loses_at(first, left, lowest):
    """Returns {reading: rate of the localization net at which SGD loses a solution of `solutions`, or None}.

    The readings: the smallest rate that does not keep it, and the smallest at which the median shuffle's lowest
    accuracy on the way is under 50 %.
    """
    enough = first["test/accuracy"] - KEPT
    lost = [rate for (_, rate), accuracies in left.items() if rate and min(accuracies) <= enough]
    falls = [rate for (_, rate), accuracies in lowest.items() if rate and median(accuracies) < 50]
    return dict(zip(READINGS, (min(lost, default=None), min(falls, default=None)), strict=True))


def sees(row):
    """Whether the transformer sees the image, in a row of sharpness.csv: it has not collapsed."""
    return collapsed([{"epoch": row["epoch"], "stn/inside": row["inside"]}]) is None
