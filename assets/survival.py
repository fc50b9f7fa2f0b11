"""Failures compared: times to failure, lists of (epoch, True) for a run that failed in it, (last epoch, False) for
another, and how well a figure ranks the runs that fail above those that last."""

import math
from itertools import combinations

import numpy as np


def log_rank(first, second):
    """Compares the times to failure of two groups.

    Returns each run's log-rank score, those of the first group first; the first group's failures less those expected if
    both failed alike, O - E, which is the sum of its scores; and the hypergeometric variance V of that. A score is 1
    for a failure less the hazard up to then (Nelson and Aalen's, of both groups): Peto and Peto, Asymptotically
    Efficient Rank Invariant Test Procedures, J. R. Statist. Soc. A 135, 1972.
    """
    times = [*first, *second]
    hazards, variance = {}, 0
    for epoch in sorted({epoch for epoch, failed in times if failed}):
        at_risk, at_risk_of_first = (sum(time >= epoch for time, _ in group) for group in (times, first))
        failures, share = times.count((epoch, True)), at_risk_of_first / at_risk
        hazards[epoch] = failures / at_risk
        variance += failures * share * (1 - share) * (at_risk - failures) / max(at_risk - 1, 1)
    scores = [failed - sum(hazards[epoch] for epoch in hazards if epoch <= time) for time, failed in times]
    return scores, sum(scores[: len(first)]), variance


def compare_times(strata):
    """Compares the times to failure of two groups within strata, a list of (times of one, times of the other).

    Returns the exact two-sided p and Peto's hazard ratio, one over other, with its 95 % interval, (ratio, low, high).
    p is the share of all ways to deal the runs of each stratum to its two groups whose O - E, summed over the strata,
    is as far from 0 as the one seen. Log-rank scores and no others, because theirs is the test that goes with the
    ratio exp((O - E) / V): p and interval then speak of the same number. The interval is the usual approximation,
    exp((O - E) / V +- 1.96 / sqrt(V)), and a rough one for so few runs: where the two disagree, p counts.
    """
    sums, distance, variance = np.zeros(1), 0, 0
    for one, other in strata:
        scores, excess, v = log_rank(one, other)
        dealt = [sum(hand) for hand in combinations(scores, len(one))]
        sums, distance, variance = np.add.outer(sums, dealt).ravel(), distance + excess, variance + v
    p = float((abs(sums) >= abs(distance) - 1e-9).mean())
    if variance == 0:
        return p, (math.nan, 0, math.inf)  # nothing failed, or nothing is left to compare with
    middle, width = distance / variance, 1.96 / math.sqrt(variance)
    return p, tuple(math.exp(value) for value in (middle, middle - width, middle + width))


def ranking(figures, chances):
    """How well a figure ranks failing runs above lasting ones: the area under the ROC curve, and its 95 % interval.

    1 if every run that fails has a larger figure than every one that lasts, 0.5 by chance. `chances` (0 to 1) are those
    of failing: a run of which only its setting's share is known counts as both, in these parts. The interval is the
    bootstrap's over the runs, of 2,000 draws. Returns (area, low, high), all nan where nothing fails or nothing lasts.
    """
    figures, chances = np.asarray(figures, float), np.asarray(chances, float)

    def area(index):
        x, fails = figures[index], chances[index]
        weights = np.outer(fails, 1 - fails)
        above = (x[:, None] > x) + 0.5 * (x[:, None] == x)
        return (weights * above).sum() / weights.sum() if weights.any() else math.nan

    draws = np.random.default_rng(0).integers(len(figures), size=(2000, len(figures)))
    drawn = [area(index) for index in draws]
    drawn = [value for value in drawn if not math.isnan(value)]
    low, high = np.quantile(drawn, (0.025, 0.975)) if drawn else (math.nan, math.nan)
    return float(area(np.arange(len(figures)))), float(low), float(high)
