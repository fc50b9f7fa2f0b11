"""Runs that nobody trained, for the tests of what reads runs.csv and results.csv."""

from assets import records
from common import summarize

TAGS = ("train/loss", "test/loss", "test/accuracy", "stn/scale", "stn/inside", "stn/spread", "stn/active", "stn/motion")
TAGS += ("stn/motion_max", "train/grad_norm", "train/grad_norm_max")
TAGS += ("time/epoch_seconds", "stn/drift", "stn/drift_max", "stn/rate")


NEEDED_TAGS = ("train/loss", "test/accuracy", "stn/inside")  # by what says whether a run failed
OPTIONAL_TAGS = tuple(tag for tag in TAGS if tag not in NEEDED_TAGS)


def without(rows, tag):
    """The rows of a run that is older than a scalar."""
    return [{name: value for name, value in row.items() if name != tag} for row in rows]


def history(*epochs, **scalars):
    """A history of (train loss, test accuracy, inside), an epoch each; the other scalars are 0.8, or as given."""
    return [
        dict.fromkeys(TAGS, 0.8)
        | scalars
        | {"epoch": epoch, "train/loss": loss, "test/accuracy": accuracy, "stn/inside": inside}
        for epoch, (loss, accuracy, inside) in enumerate(epochs, start=1)
    ]


WELL, OFF = (1.0, 90.0, 0.9), (2.3, 11.35, 0.0)
LASTS = history(*[WELL] * 100)
STOPPED = history(*[(1.0, 80.0, 0.9)] * 39, OFF)
LOSES = history(*[WELL] * 50, *[(1.6, 85.0, 0.9)] * 50)


def fails_in(epoch, of=100):
    return history(*[WELL] * (epoch - 1), *[OFF] * (of - epoch + 1))


def run(rows, experiment=1, seed=0, **columns):
    """A run of experiment 1's settings, or as given, in the form of `records.read_runs`."""
    settings = {"experiment": experiment, "variant": None, "dataset": "cluttered", "digits": "full", "limit": 60000}
    settings |= {"seed": seed, "mean": 0.1307, "std": 0.3081, "fill": 0, "transformer": "SpatialTransformer"}
    settings |= {"optimizer": "SGD(lr=0.01)", "max_grad_norm": None, "batch_size": 64}
    settings |= {"max_motion": None, "scheduler": None, "penalty": None, "drift": None}
    facts = dict.fromkeys(records.FACTS, "unknown") | {"title": "made up", "epochs": 100}
    return settings | facts | {"history": rows} | summarize(rows) | columns


def rows(table):
    """The cells of a Markdown table's rows, its head checked for as many."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert {len(line) for line in lines} == {len(lines[0])} and set(lines[1]) == {"---"}
    return lines[2:]
