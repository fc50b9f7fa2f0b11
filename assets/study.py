"""What tables and figures read out of the CSV files: runs, and what became of them."""

import math
import re
from itertools import groupby
from statistics import median
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from assets.records import read_runs, read_table, run_key, run_sort_key, settings_of
from common import DATASETS, DEFAULTS, collapsed

FULL = {"digits": "full", "limit": DEFAULTS["limit"]}
STANDARD = {"dataset": DEFAULTS["dataset"]} | FULL  # what experiments are compared by: all canvases of the full digits
ONE_MAP = 0.01  # spread under which the regions' centres are one place for all images


def read_all(assets):
    """Returns all that a folder's CSV files hold: `runs`, those that are `counted`, and the rows of measurements."""
    runs = read_runs(assets)
    return SimpleNamespace(
        assets=assets,
        runs=runs,
        counted=without_repeats(runs),
        replays=read_table(assets / "failures.csv"),
        elsewhere=read_table(assets / "elsewhere.csv"),
        speed=read_table(assets / "speed.csv"),
    )


# ------------------------------------------------------------------------------------------------------------ data sets


def moves_about(dataset):
    """Whether what a data set shows has different places in its images; so it has where the set is not known."""
    return dataset not in DATASETS or DATASETS[dataset].moves


def side_of(dataset):
    """Side of a data set's images in pixels, or None where it is not known."""
    return DATASETS[dataset].side if dataset in DATASETS else None


def digits_of(dataset):
    """What tables and figures call the digits of a data set."""
    return "plain" if dataset == "mnist" else dataset


# ----------------------------------------------------------------------------------------------------------------- runs


def pick(runs, **columns):
    """The runs with these values in these columns, as in `pick(runs, **STANDARD, experiment=1)`."""
    return [run for run in runs if all(run.get(name) == value for name, value in columns.items())]


def group(runs):
    """Returns the runs as lists, those that differ by their seed alone in one, in order."""
    return [list(seeds) for _, seeds in groupby(sorted(runs, key=run_sort_key), key=lambda run: run_key(run)[:-1])]


def optimizer_kind(run):
    """What figures and tables tell optimizers apart by: "SGD", "SGD, momentum" or "Adam"."""
    kind = run["optimizer"].partition("(")[0]
    return f"{kind}, momentum" if "momentum" in run["optimizer"] else kind


def without_repeats(runs):
    """The runs but for those of fewer epochs than others of the same setting: repeats, made for their motion.

    Over fewer epochs fewer fail, so that they are in no count of failures.
    """
    kept = []
    for seeds in group(runs):
        longest = max(run["epochs"] for run in seeds)
        kept += [run for run in seeds if run["epochs"] == longest]
    return kept


def by_rate(runs):
    """Returns {dataset: {learning rate of the localization net: runs}} of experiment 17, still digits first."""
    found = {}
    for seeds in group(pick(runs, **FULL, experiment=17)):
        found.setdefault(seeds[0]["dataset"], {})[float(seeds[0]["variant"])] = seeds
    return {dataset: found[dataset] for dataset in sorted(found, key=moves_about)}


# --------------------------------------------------------------------------------------------------------------- events


def count_failed(runs):
    return sum(run["failed"] is not None for run in runs)


def was_stopped(run):
    """Whether a run ended before its last epoch: what it would have come to is not known."""
    return len(run["history"]) < run["epochs"]


def reaches(history, accuracy):
    """First epoch with that test accuracy in percent, or None."""
    return next((row["epoch"] for row in history if row["test/accuracy"] >= accuracy), None)


def off_the_image(inside):
    """Whether a transformer with that inside has collapsed."""
    return collapsed([{"epoch": 1, "stn/inside": inside}]) is not None


def before_failure(run):
    """The rows of the epochs before a run fails, all if it does not."""
    return run["history"][: run["failed"] - 1] if run["failed"] else run["history"]


# -------------------------------------------------------------------------------------------- what became of a run

ZOOMED_OUT = 1.1  # scale over which a run on plain digits has zoomed out
LONG = 40  # epochs from which on what became of a run is its own; of a shorter one that did not fail, its setting's


def median_of(rows, tag):
    """The median of a scalar over the rows that have it, or None if none has."""
    values = [row[tag] for row in rows if row.get(tag) is not None]
    return median(values) if values else None


def judged_epochs(run):
    """The epochs that a run is judged by, as rows: five from the first with a test accuracy of 50 % or more.

    Of a run that fails before it has those, the last five before it fails, or as many as there are.
    """
    rows = before_failure(run)
    first = reaches(rows, 50)
    if first and first + 4 <= len(rows):
        return rows[first - 1 : first + 4]
    return rows[-5:]


def judged_median(run, tag):
    """The median of a scalar over `judged_epochs`, or None if it was not recorded then."""
    values = [row.get(tag) for row in judged_epochs(run)]
    return median(values) if values and None not in values else None


def localization_rate(optimizer):
    """The localization net's learning rate in what a run says of its optimizer, the largest if it has several."""
    groups = optimizer.partition("(")[2].rstrip(")").split("; ")
    own = [group for group in groups if " on " not in group or re.search(r"\bstn\b", group.partition(" on ")[2])]
    return max(float(re.search(r"\blr=([^\s,]+)", group)[1]) for group in own)


def fate(run):
    """What became of a run, by what was fixed: "failed", "zoomed out", "one map" or "lasts"."""
    if run["failed"] and run["failed"] <= 100:
        return "failed"
    last = run["history"][-3:]
    if not moves_about(run["dataset"]):
        scale = last[-1].get("stn/scale")
        return "zoomed out" if scale is not None and scale > ZOOMED_OUT else "lasts"
    spreads = [row.get("stn/spread") for row in last]
    return "one map" if None not in spreads and max(spreads) < ONE_MAP else "lasts"


def has_failed(run):
    """Whether a run collapsed, lost its solution or zoomed out."""
    return fate(run) in ("failed", "zoomed out")


def failure_chance(run, runs):
    """0 or 1, whether a run has failed; where it is short, the share of its setting's runs that have.

    That is, of the longer runs with the same settings and data, if there are any, and it did not fail itself.
    """
    if has_failed(run):
        return 1
    setting = run["dataset"], run["limit"], settings_of(run)
    alike = [other for other in runs if (other["dataset"], other["limit"], settings_of(other)) == setting]
    longer = [has_failed(other) for other in alike if len(other["history"]) >= LONG]
    if len(run["history"]) >= LONG or not longer:
        return 0
    return longer.count(True) / len(longer)


class Ranking(NamedTuple):
    """The area under the ROC curve, and its 95 % interval."""

    area: float
    low: float
    high: float


def ranking(figures, chances):
    """How well a figure ranks failing runs above lasting ones, a `Ranking`.

    1 if every run that fails has a larger figure than every one that lasts, 0.5 by chance. `chances` (0 to 1) are those
    of failing: a run of which only its setting's share is known counts as both, in these parts. The interval is the
    bootstrap's over the runs, of 2,000 draws. All is nan where nothing fails or nothing lasts.
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
    return Ranking(float(area(np.arange(len(figures)))), float(low), float(high))
