"""Adds the runs in a folder to runs.csv (a row a run) and results.csv (a row an epoch), for make_figures.py:

    python assets/collect.py LOG_DIR

A run that is there already is replaced by itself, once it has got further; by one with other settings, never.
"""

import csv
import io
import json
import sys
from itertools import groupby
from pathlib import Path

ASSETS = Path(__file__).parent
sys.path.insert(0, str(ASSETS.parent))
from common import TAGS, RunError, summarize, write  # noqa: E402

KEY = ("experiment", "variant", "dataset", "digits", "limit", "seed")  # what tells runs apart
SETTINGS = ("mean", "std", "fill", "transformer", "optimizer", "max_grad_norm", "batch_size")  # what else defines one
FACTS = ("title", "epochs", "device", "cpu", "threads", "python", "torch", "torchvision", "numpy")
OUTCOME = tuple(summarize([]))
TEXTS = ("dataset", "digits", "transformer", "optimizer", "title", "device", "cpu", "python")
TEXTS += ("torch", "torchvision", "numpy")


def number(text):
    """What a cell says: a number, the whole ones as int; None if it is empty; else its text."""
    if text == "":
        return None
    try:
        value = float(text)
    except ValueError:
        return text
    return int(value) if value.is_integer() else value


def read_table(path):
    """Returns the rows of a CSV file as dicts, numbers as numbers, empty cells as None."""
    with open(path, newline="") as file:
        return [
            {key: text if key in TEXTS else number(text) for key, text in row.items()} for row in csv.DictReader(file)
        ]


def write_table(path, columns, rows):
    """Writes the columns of dicts as a CSV file, None as an empty cell."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        cells = [row[name] for name in columns]
        writer.writerow(int(cell) if isinstance(cell, float) and cell.is_integer() else cell for cell in cells)
    write(path, file.getvalue().encode())


def key_of(run):
    """The values of `KEY`, by which runs are sorted; a variant is a number, or None."""
    return tuple(run[name] for name in KEY)


def solution_of(row):
    """The key of a row's run, and the row's epoch: what tells saved weights apart."""
    return *key_of(row), row["epoch"]


def order(run):
    return tuple((value is not None, value) for value in key_of(run))


def read_runs(assets=ASSETS):
    """Returns all runs of runs.csv, each a dict of its columns and its "history", a list of dicts of results.csv.

    A figure that was not recorded then is None. The numbers of experiments are int, 3 for classification_experiment_3.
    """
    if not (assets / "runs.csv").exists():
        return []
    epochs = groupby(read_table(assets / "results.csv"), key=key_of)
    histories = {key: [{name: row[name] for name in ("epoch", *TAGS)} for row in rows] for key, rows in epochs}
    return [run | {"history": histories[key_of(run)]} for run in read_table(assets / "runs.csv")]


def write_runs(runs, assets=ASSETS):
    """Writes runs, as `read_runs` returns them, in the order of their keys."""
    accuracies = ("best_accuracy", "last_accuracy")
    runs = [run | {name: float(f"{run[name]:.6g}") for name in accuracies} for run in sorted(runs, key=order)]
    rows = [{name: run[name] for name in KEY} | row for run in runs for row in run["history"]]
    rows = [row | {tag: float(f"{row[tag]:.6g}") for tag in TAGS if row[tag] is not None} for row in rows]
    write_table(assets / "results.csv", [*KEY, "epoch", *TAGS], rows)  # first: a run needs its epochs
    write_table(assets / "runs.csv", [*KEY, *SETTINGS, *FACTS, *OUTCOME], runs)


def read_folder(folder):
    """Returns the run in a folder, in the form of `read_runs`. Raises RunError if there is none."""
    try:
        run = json.loads((folder / "run.json").read_text())
        run["experiment"] = int(run["experiment"].rpartition("_")[2])
        run["history"] = read_table(folder / "metrics.csv")[: run["epoch"]]
        missing = [name for name in (*KEY, *SETTINGS, *FACTS, *OUTCOME) if name not in run]
        if len(run["history"]) < run["epoch"]:
            raise ValueError(f"metrics.csv has {len(run['history'])} of {run['epoch']} epochs")
        missing += [name for name in ("epoch", *TAGS) if any(name not in row for row in run["history"])]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{folder} holds no run of this version: its run.json or metrics.csv says {error!r}") from error
    if missing:
        raise RunError(f"{folder} holds no run of this version: {missing[0]} is missing in run.json or metrics.csv")
    return run


def ended(run):
    """Whether a run has come to its last epoch, or was stopped by --stop-on-collapse."""
    stopped = run.get("stop_on_collapse") and run["collapsed"] is not None
    return run["epoch"] >= run["epochs"] or stopped


def collect(log_dir, assets=ASSETS):
    """Adds the finished runs in `log_dir`. Raises RunError if there are none, or one has other settings than before."""
    folders = sorted(path.parent for path in Path(log_dir).glob("*/run.json"))
    if not folders:
        raise RunError(f"{log_dir} holds no run folders: give the folder that they are in, the --log-dir of the runs")
    runs = {key_of(run): run for run in read_runs(assets)}
    for folder in folders:
        run = read_folder(folder)
        before = runs.get(key_of(run), {"epoch": 0} | {name: run[name] for name in SETTINGS})
        differs = [f"{name} was {before[name]}, is {run[name]}" for name in SETTINGS if before[name] != run[name]]
        if differs:
            raise RunError(
                f"{folder} has other settings than that run in runs.csv ({'; '.join(differs)}): nothing added"
            )
        if not ended(run):
            print(f"left out, not finished: {folder}, {run['epoch']} of {run['epochs']} epochs")
        elif run["epoch"] < before["epoch"]:
            print(f"left out, shorter: {folder}, {run['epoch']} epochs, of which runs.csv has {before['epoch']}")
        else:
            runs[key_of(run)] = run
    write_runs(runs.values(), assets)
    print(f"{len(runs)} runs are in {assets / 'runs.csv'}")


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: python assets/collect.py LOG_DIR, the folder that run folders are in")
    try:
        collect(sys.argv[1])
    except (RunError, OSError) as error:
        sys.exit(f"collect.py: error: {error}")


if __name__ == "__main__":
    main()
