"""What tables and figures read out of the CSV files: runs, and what became of them."""

import re
from collections import Counter
from itertools import groupby
from statistics import median
from types import SimpleNamespace

from assets.records import read_runs, read_table, run_key, run_sort_key, settings_of
from common import DATASETS, DEFAULTS, summarize

# what experiments are compared by: all canvases of the full digits
STANDARD = {"dataset": DEFAULTS["dataset"], "digits": "full", "limit": DEFAULTS["limit"]}
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
    """What figures and tables tell optimizers apart by: its class, and "SGD, momentum"."""
    kind = run["optimizer"].partition("(")[0]
    has_momentum = re.search(r"\bmomentum=", run["optimizer"])  # one cycle adds a max_momentum, Adam's beta1
    return f"{kind}, momentum" if has_momentum else kind


RUN_ON = ((9, 5), (9, 6))  # experiments and seeds of repeats that were run on since one of them had failed


def without_repeats(runs):
    """The runs but for repeats, for motion or drift: those of fewer epochs than most of the same setting have.

    Over fewer epochs fewer fail, so that these are in no count of failures. Nor are those that were run on.
    """
    runs = [run for run in runs if (run["experiment"], run["seed"]) not in RUN_ON]
    kept = []
    for seeds in group(runs):
        counts = Counter(run["epochs"] for run in seeds)
        usual = max(counts, key=lambda epochs: (counts[epochs], epochs))
        kept += [run for run in seeds if run["epochs"] >= usual]
    return kept


# --------------------------------------------------------------------------------------------------------------- events


def count_failed(runs):
    return sum(run["failed"] is not None for run in runs)


def was_stopped(run):
    """Whether a run ended before its last epoch: what it would have come to is not known."""
    return len(run["history"]) < run["epochs"]


def reaches(history, accuracy):
    """First epoch with that test accuracy in percent, or None."""
    return next((row["epoch"] for row in history if row["test/accuracy"] >= accuracy), None)


def until(epoch, run):
    """The run as it was after that epoch, or where it was stopped before."""
    history = run["history"][:epoch]
    return run | {"history": history, "epochs": epoch} | summarize(history)


def before_failure(run):
    """The rows of the epochs before a run fails, all if it does not."""
    return run["history"][: run["failed"] - 1] if run["failed"] else run["history"]


# ------------------------------------------------------ what became of a run, as it was fixed before drift was recorded

ZOOMED_OUT = 1.25  # scale over which a run has zoomed out at its end
FORMERLY_ZOOMED_OUT = 1.1
DEAD = 0.05  # fraction of active units under which one map is one of dead units
LOW, HIGH = 0.05, 0.085  # drift under the one was foretold to do no harm, over the other to do it
HORIZON = 100  # epochs within which it was foretold


def median_of(rows, tag):
    """The median of a scalar over the rows that have it, or None if none has."""
    values = [row[tag] for row in rows if row.get(tag) is not None]
    return median(values) if values else None


def judged_epochs(run):
    """The epochs that a run is judged by, as rows: five from the first with a test accuracy of 50 % or more.

    Of a run that fails or ends before it has those, the last five before that, or as many as there are.
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


def fate(run):
    """What became of a run: "failed" within 100 epochs, or by its end "one map", "zoomed out" or "lasts"."""
    if run["failed"] and run["failed"] <= HORIZON:
        return "failed"
    last = run["history"][-3:]
    spreads = [row.get("stn/spread") for row in last]
    if moves_about(run["dataset"]) and None not in spreads and max(spreads) < ONE_MAP:
        return "one map"
    scale = last[-1].get("stn/scale")
    return "zoomed out" if scale is not None and scale > ZOOMED_OUT else "lasts"


def formerly_zoomed_out(run):
    """Whether a run has zoomed out by the bound of the rounds before, on digits that stand still."""
    scale = run["history"][-1].get("stn/scale")
    return not moves_about(run["dataset"]) and scale is not None and scale > FORMERLY_ZOOMED_OUT


def has_dead_units(run):
    """Whether a run ends with one map since its localization net's units are dead."""
    active = median_of(run["history"][-3:], "stn/active")
    return fate(run) == "one map" and active is not None and active < DEAD


def went_wrong(run):
    """Whether a run failed, zoomed out, or ends with one map, if that is not one of dead units."""
    return fate(run) != "lasts" and not has_dead_units(run)


def as_one_group(optimizer):
    """The text of an optimizer; "SGD(lr=0.01)" where it has several groups that all have the options lr=0.01."""
    kind, _, groups = optimizer.removesuffix(")").partition("(")
    options = [group.partition(" on ")[0] for group in groups.split("; ")]
    return f"{kind}({options[0]})" if len(options) > 1 and len(set(options)) == 1 else optimizer


def setting_of(run):
    """What runs that differ by their seed alone have in common, whatever their experiment's number."""
    settings = settings_of(run | {"data": None, "optimizer": as_one_group(run["optimizer"])})
    return run["dataset"], run["digits"], run["limit"], *settings.values()


def chance(run, runs):
    """0 or 1, whether a run went wrong; where it did not, the share of its setting's runs of more epochs that did."""
    if went_wrong(run):
        return 1
    longer = [other for other in runs if setting_of(other) == setting_of(run) and other["epochs"] > run["epochs"]]
    if run["epochs"] >= HORIZON or not longer:
        return 0
    return sum(map(went_wrong, longer)) / len(longer)


# ---------------------------------------------------------------------------------------------------- drift, and a step


def drift_of(run):
    return judged_median(run, "stn/drift")


def with_drift(runs):
    """The runs that recorded drift in the epochs that they are judged by."""
    return [run for run in runs if drift_of(run) is not None]


def step_of(run):
    """In pixels of the image."""
    return judged_median(run, "stn/motion")


def steps_of_drift(run):
    """How many steps straight on lead as far as 64 steps do, or None if that is not known."""
    step, scale, side = step_of(run), judged_median(run, "stn/scale"), side_of(run["dataset"])
    return None if None in (step, scale, side) else drift_of(run) * scale * side / step
