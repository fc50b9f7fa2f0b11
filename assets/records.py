"""The CSV files: what a run is known by, reading, and adding rows. The one place that knows the columns of runs.

runs.csv has a row a run, results.csv a row an epoch of a run. What is measured on a run begins with the columns of
`RUN_KEY` and the epoch. What a run does not have, since it is older than the setting or the scalar, is None, and an
empty cell.
"""

import csv
import io
import json
import re

from assets import ASSETS
from common import DEFAULTS, RunError, summarize, write
from common import SETTINGS as ALL_SETTINGS

RUN_KEY = ("experiment", "variant", "dataset", "digits", "limit", "seed")  # what tells runs apart
SETTINGS = tuple(name for name in ALL_SETTINGS if name not in RUN_KEY)  # what defines a run beyond that
FACTS = ("title", "epochs", "cpu", "torch")  # what else is kept of a run
SCALARS = ("train/loss", "test/accuracy", "stn/scale", "stn/inside")  # that every epoch has
TEXTS = ("variant", "dataset", "digits", "transformer", "optimizer", "title", "cpu", "torch")

# ---------------------------------------------------------------------------------------------------------------- cells


def parse_cell(column, text):
    """What a cell says: None if it is empty, a number (a whole one as int) unless the column is one of texts."""
    if not text or column in TEXTS:
        return text or None
    try:
        value = float(text.replace(",", "."))  # a spreadsheet's
    except ValueError:
        return text
    return int(value) if value.is_integer() else value


def format_cell(value):
    """The text of a cell: nothing for None, whole numbers without a point."""
    if value is None:
        return ""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def read_table(path):
    """Returns the rows of a CSV file as dicts, see `parse_cell`; none if there is no file."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8-sig") as file:
        separator = ";" if ";" in file.readline().partition(",")[0] else ","  # as spreadsheets of some countries write
        file.seek(0)
        rows = csv.DictReader(file, delimiter=separator)
        cells = [{column: parse_cell(column, text) for column, text in row.items()} for row in rows]
        return [row for row in cells if any(value is not None for value in row.values())]


def format_table(rows, columns=None):
    """The bytes of a CSV file of dicts, with these columns or all that a row has; what a row lacks is an empty cell."""
    columns = columns or list(dict.fromkeys(name for row in rows for name in row))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([format_cell(row.get(column)) for column in columns] for row in rows)
    return file.getvalue().encode()


def six_digits(row):
    """A row with its floats rounded to six significant digits."""
    return {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in row.items()}


# ----------------------------------------------------------------------------------------------- what a run is known by


def run_key(row):
    """What tells the run of a row from others: its values of `RUN_KEY`."""
    return tuple(row[name] for name in RUN_KEY)


def weights_key(row):
    """What tells saved weights apart: the run of a row, and the row's epoch."""
    return run_key(row), row["epoch"]


def key_columns(run, epoch):
    """The columns that a measurement's row begins with."""
    return {name: run[name] for name in RUN_KEY} | {"epoch": epoch}


def variant_sort_key(variant):
    """No variant comes first, then numbers by their value, then words."""
    if variant is None:
        return 0, 0
    try:
        return 1, float(variant)
    except ValueError:
        return 2, 0


def run_sort_key(row):
    """By `RUN_KEY`, variants by `variant_sort_key`."""
    return row["experiment"], variant_sort_key(row["variant"]), run_key(row)


def settings_of(run):
    """What defines a run beyond its key: `SETTINGS`; one that it is older than has its default."""
    return {name: run.get(name, DEFAULTS.get(name)) for name in SETTINGS}


# ------------------------------------------------------------------------------------------------ runs.csv, results.csv


def in_order(history):
    """By epoch, which a spreadsheet may have sorted otherwise."""
    return sorted(history, key=lambda row: row["epoch"])


def read_runs(assets=ASSETS):
    """Returns all runs of runs.csv, each a dict of its columns, of what `common.summarize` says, and of "history".

    That is a list of dicts of results.csv, with "epoch" and its other columns. The numbers of experiments are int, 3
    for classification_experiment_3; a variant is a text, or None.
    """
    histories = {}
    for row in read_table(assets / "results.csv"):
        of_epoch = {name: row[name] for name in row if name not in RUN_KEY}
        histories.setdefault(run_key(row), []).append(of_epoch)
    runs = read_table(assets / "runs.csv")
    if lacking := [run for run in runs if run_key(run) not in histories]:
        raise RunError(f"{assets}/results.csv has no epoch of {run_key(lacking[0])}, which runs.csv has: put them back")
    runs = [run | settings_of(run) | {"history": in_order(histories[run_key(run)])} for run in runs]
    return [run | summarize(run["history"]) for run in runs]


def write_runs(runs, assets=ASSETS):
    """Writes runs, as `read_runs` returns them, sorted, into both files.

    What any run has measured is a column of results.csv. That is written first: `read_runs` looks up there what
    runs.csv has, so that a disk that is full in between leaves what can be read and collected again.
    """
    runs = sorted(runs, key=run_sort_key)
    rows = [key_columns(run, row["epoch"]) | six_digits(row) for run in runs for row in run["history"]]
    write(assets / "results.csv", format_table(rows))
    write(assets / "runs.csv", format_table(runs, [*RUN_KEY, *SETTINGS, *FACTS]))


# ---------------------------------------------------------------------------------------------------------- run folders


def read_folder(folder):
    """Returns the run in a folder, in the form of `read_runs`, with all that its run.json has, and its "code".

    Raises RunError if there is none, or it lacks what every run has. `data_dir` is "data" where it was not recorded.
    """
    try:
        told = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        number = re.fullmatch(r"classification_experiment_(\d+)", told["experiment"])
        if number is None:
            rule = "whose script should be named classification_experiment_N.py, N a number"
            raise RunError(f"{folder} holds a run of {told['experiment']}.py, {rule}")
        run = {"data_dir": "data", "data": None} | told | {"experiment": int(number[1])}
        missing = [name for name in (*RUN_KEY, *FACTS, "epoch") if name not in run]
        missing += [name for name in SETTINGS if name not in (run | DEFAULTS)]
        run |= {name: parse_cell(name, format_cell(value)) for name, value in settings_of(run).items()}
        run["variant"] = format_cell(run["variant"]) or None
        history = in_order(read_table(folder / "metrics.csv"))[: run["epoch"]]
        if len(history) < run["epoch"]:
            raise ValueError(f"metrics.csv has {len(history)} of {run['epoch']} epochs")
        missing += [name for name in ("epoch", *SCALARS) if any(row.get(name) is None for row in history)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{folder} holds no run of this version: its run.json or metrics.csv says {error!r}") from error
    if missing:
        raise RunError(f"{folder} holds no run of this version: {missing[0]} is missing in run.json or metrics.csv")
    kept = folder / "code"
    code = {str(path.relative_to(kept)): path.read_text(encoding="utf-8") for path in sorted(kept.rglob("*.py"))}
    return run | {"history": history, "code": code} | summarize(history)


def is_finished(run):
    """Whether the run of a folder has come to its last epoch, or was stopped by --stop-on-collapse."""
    return run["epoch"] >= run["epochs"] or bool(run.get("stop_on_collapse") and run["collapsed"])


# --------------------------------------------------------------------------------------------------------- measurements


def add_rows(path, rows):
    """Adds rows to a measurement's CSV file, in the place of all that it has of the same runs and epochs.

    A row is a dict of `key_columns` and figures, which are written with six digits. Sorted by run and epoch.
    """
    measured = {weights_key(row) for row in rows}
    rows = [row for row in read_table(path) if weights_key(row) not in measured] + [six_digits(row) for row in rows]
    write(path, format_table(sorted(rows, key=lambda row: (run_sort_key(row), row["epoch"]))))
