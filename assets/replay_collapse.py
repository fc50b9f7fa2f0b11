"""Replays the epoch in which a run collapsed, step by step, and adds it to collapses.csv, which make_figures.py draws:

    python assets/replay_collapse.py classification_experiment_4 classification_experiment_1_seed1

A replay begins with the last weights that the run saved before, and SGD without momentum has no other state: on the
machine of the run, with as many threads, it comes to the same numbers to the last bit, which is checked.
"""

import csv
import json
import sys
from functools import partial
from pathlib import Path

import torch

ASSETS = Path(__file__).parent
sys.path.insert(0, str(ASSETS.parent))
import common  # noqa: E402
import stn  # noqa: E402

COLUMNS = ("experiment", "seed", "step", "inside", "gradient of the transformer", "gradient of the classifier")


def replay(folder, epoch):
    """Trains the epochs from the last weights before `epoch` to its end, as the run in `folder` did.

    Returns for each step of `epoch`: inside, of the step's images, and the L2 norms of the transformer's and the
    classifier's gradient. Exits with one line if the run was not SGD's, or the losses are not those of the run.
    """
    run = json.loads((folder / "run.json").read_text())
    losses = [row["train/loss"] for row in common.load_state(folder / "checkpoint.pt")["history"]]
    if run["optimizer"] != "SGD(lr=0.01)":
        sys.exit(f"{folder} is a run of {run['optimizer']}, whose state is not saved: only SGD's can be replayed")
    torch.set_num_threads(run["threads"])
    model = stn.STNClassifier(fill=run["fill"]).to(memory_format=torch.channels_last)
    first = (epoch - 1) // common.FIGURE_EVERY * common.FIGURE_EVERY
    model.load_state_dict(common.load_state(folder / f"weights_{first:03}.pt"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    (images, labels), _, _ = common.load_canvases("cluttered", "data", run["digits"], run["limit"])
    to_batch = partial(common.normalize, peak=1, mean=run["mean"], std=run["std"])

    theta, steps = [], []
    model.stn.fc_loc.register_forward_hook(lambda module, inputs, output: theta.append(output.detach().view(-1, 2, 3)))

    def record(*_):
        parts = (model.stn.parameters(), model.classifier.parameters())
        norms = (torch.cat([weights.grad.flatten() for weights in part]).norm().item() for part in parts)
        steps.append((stn.inside(theta.pop()).item(), *norms))

    optimizer.register_step_pre_hook(record)
    for now in range(first + 1, epoch + 1):
        steps.clear()
        torch.manual_seed(10_000 * run["seed"] + now)
        loss = common.train(model, optimizer, images, labels, to_batch, f"epoch {now}")
        if loss != losses[now - 1]:
            sys.exit(f"{folder}: another machine's run? In epoch {now} its loss was {losses[now - 1]}, not {loss}")
    return steps


def main():
    if not sys.argv[1:]:
        sys.exit(__doc__)
    path = ASSETS / "collapses.csv"
    rows = list(csv.reader(path.open()))[1:] if path.exists() else []
    for folder in map(Path, sys.argv[1:]):
        run = json.loads((folder / "run.json").read_text())
        epoch = common.collapsed(common.load_state(folder / "checkpoint.pt")["history"])
        if epoch is None:
            sys.exit(f"{folder}: this run has not collapsed")
        steps = replay(folder, epoch)
        end = next(step for step, (inside, *_) in enumerate(steps) if inside < 0.01)  # steps are counted from here
        key = [run["experiment"].rpartition("_")[2], str(run["seed"])]
        rows = [row for row in rows if row[:2] != key]
        around = range(max(0, end - 200), min(len(steps), end + 51))
        rows += [[*key, step - end, *(f"{value:.6g}" for value in steps[step])] for step in around]
    with open(path, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])


if __name__ == "__main__":
    main()
