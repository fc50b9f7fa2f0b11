"""Replays the epoch in which a run's transformer died, step by step, and adds it to deaths.csv, for make_figures.py:

    python assets/replay_death.py RUN_FOLDER [EPOCH]

Without EPOCH that is the one in which the run collapsed or lost its solution, whichever comes first. A replay begins
with the last weights that the run saved before, and SGD without momentum has no other state: on the machine of the run,
with as many threads, it comes to the same numbers to the last bit, which is checked.
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

MEASURES = ("inside", "scale", "active", "gradient of the localization net")


def replay(folder, epoch):
    """Trains the epochs from the last weights before `epoch` to its end, as the run in `folder` did.

    Returns the `MEASURES` of each step of `epoch`, all of the step's images: inside and scale, the fraction of the
    localization's hidden units (after the ReLU of `fc_loc`) that are not 0, and the L2 norm of the gradient of all
    weights of `localization`. Exits with one line if the run was not SGD's, or the losses are not those of the run.
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

    seen, steps = {}, []
    _, relu, last = model.stn.fc_loc
    relu.register_forward_hook(lambda module, inputs, output: seen.update(hidden=output.detach()))
    last.register_forward_hook(lambda module, inputs, output: seen.update(theta=output.detach().view(-1, 2, 3)))

    def record(*_):
        norm = torch.cat([weights.grad.flatten() for weights in model.stn.localization.parameters()]).norm()
        active = (seen["hidden"] > 0).float().mean()
        values = (stn.inside(seen["theta"]), stn.scale(seen["theta"]), active, norm)
        steps.append(dict(zip(MEASURES, (value.item() for value in values), strict=True)))

    optimizer.register_step_pre_hook(record)
    for now in range(first + 1, epoch + 1):
        steps.clear()
        torch.manual_seed(10_000 * run["seed"] + now)
        loss = common.train(model, optimizer, images, labels, to_batch, f"epoch {now}")
        if loss != losses[now - 1]:
            sys.exit(f"{folder}: another machine's run? In epoch {now} its loss was {losses[now - 1]}, not {loss}")
    return steps


def death(steps):
    """The first step in which under 1 % of sampling points are inside or under 1 % of hidden units active, or None."""
    return next((i for i, step in enumerate(steps) if step["inside"] < 0.01 or step["active"] < 0.01), None)


def main():
    if len(sys.argv) not in (2, 3) or not all(map(str.isdigit, sys.argv[2:])):
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    run = json.loads((folder / "run.json").read_text())
    history = common.load_state(folder / "checkpoint.pt")["history"]
    epochs = [int(epoch) for epoch in sys.argv[2:]]
    epochs = epochs or [event(history) for event in (common.collapsed, common.lost_solution) if event(history)]
    if not epochs:
        sys.exit(f"{folder}: this run has neither collapsed nor lost its solution")
    epoch = min(epochs)
    if not 1 <= epoch <= len(history):
        sys.exit(f"{folder}: epoch {epoch} is not one of its {len(history)} epochs")
    steps = replay(folder, epoch)
    end = death(steps)  # steps are counted from here
    if not end:
        before = "in an earlier epoch" if end == 0 else "later or not at all"
        sys.exit(f"{folder}: its transformer did not die in epoch {epoch}, but {before}: give the right one")
    path = ASSETS / "deaths.csv"
    rows = list(csv.reader(path.open()))[1:] if path.exists() else []
    key = [run["experiment"].rpartition("_")[2], str(run["seed"]), str(epoch)]
    rows = [row for row in rows if row[:3] != key]
    around = range(max(0, end - 200), min(len(steps), end + 201))
    rows += [[*key, i - end, *(f"{value:.6g}" for value in steps[i].values())] for i in around]
    rows.sort(key=lambda row: [int(number) for number in row[:3]])
    with open(path, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("experiment", "seed", "epoch", "step", *MEASURES), *rows])


if __name__ == "__main__":
    main()
