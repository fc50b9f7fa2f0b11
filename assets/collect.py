"""Adds the runs in a folder to runs.csv (a row a run) and results.csv (a row an epoch), for assets.figures.

A run that is there already is replaced by itself, once it has got further; by one with other settings, never. Nor do
runs with other settings go beside it as other seeds.
"""

from pathlib import Path

from assets import ASSETS, Command
from assets.records import SETTINGS, is_finished, read_folder, read_runs, run_key, six_digits, write_runs
from common import RunError, difference


def check_settings(folder, run, runs):
    """Raises RunError if a run's settings, or its code, are not those that it had, or that another seed has."""
    for other in runs:
        if run_key(other)[:-1] == run_key(run)[:-1] and (differs := difference(other, run, SETTINGS)):
            which = "that run" if run_key(other) == run_key(run) else f"seed {other['seed']} of that setting"
            raise RunError(f"{folder} has other settings than {which} in runs.csv ({differs}): nothing added")


def same_numbers(run, before):
    """Whether both have the same losses, as results.csv keeps them."""
    losses = [[six_digits(row)["train/loss"] for row in each["history"]] for each in (run, before)]
    return losses[0] == losses[1]


def collect(log_dir, assets=ASSETS):
    """Adds the finished runs in `log_dir`. Raises RunError if no run is there, or one has other settings."""
    folders = sorted(path.parent for path in log_dir.glob("*/run.json"))
    if not folders:
        raise RunError(f"{log_dir} holds no run folders: give the folder that they are in, the --log-dir of the runs")
    runs = {run_key(run): run for run in read_runs(assets)}
    for folder in folders:
        try:
            run = read_folder(folder)
        except RunError as error:
            print(f"left out: {error}")
            continue
        check_settings(folder, run, runs.values())
        before = runs.get(run_key(run), run)
        if not is_finished(run):
            print(f"left out, not finished: {folder}, {run['epoch']} of {run['epochs']} epochs")
        elif run["epoch"] < before["epoch"]:
            print(f"left out, shorter: {folder}, {run['epoch']} epochs, of which runs.csv has {before['epoch']}")
        elif run["epoch"] == before["epoch"] and not same_numbers(run, before):
            print(f"left out, another run of the same name and length is in runs.csv, with other numbers: {folder}")
        else:
            runs[run_key(run)] = run
    write_runs(runs.values(), assets)
    print(f"{len(runs)} runs are in {assets / 'runs.csv'}")


def main():
    command = Command(prog="python -m assets.collect", description=__doc__)
    command.add_argument("log_dir", type=Path, help="folder that run folders are in, the --log-dir of the runs")
    command.set_defaults(function=collect)
    command.run()


if __name__ == "__main__":
    main()
