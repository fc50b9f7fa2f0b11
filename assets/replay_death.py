"""Replays the epoch in which a run's transformer failed, step by step, and adds it to deaths.csv, for make_figures.py:

    python assets/replay_death.py RUN_FOLDER [EPOCH]

Without EPOCH that is the one in which the run failed. A replay begins with weights that the run saved at least an epoch
before, so that it has the steps that lead there. SGD without momentum has no other state: on the machine of the run,
with as many threads, it comes to the same numbers to the last bit, which is checked.
"""

import sys
from pathlib import Path

import torch
from collect import ended, read_folder, read_table, write_table
from rebuild import load_weights, rebuild
from torch.nn.utils import get_total_norm

ASSETS = Path(__file__).parent
sys.path.insert(0, str(ASSETS.parent))
import common  # noqa: E402
import stn  # noqa: E402
from common import RunError  # noqa: E402

KEY = ("experiment", "variant", "dataset", "seed", "epoch")  # what tells replays apart
MEASURES = ("inside", "scale", "active", "spread", "gradient", "gradient of the localization net")


def record(model, optimizer):
    """Returns a list that each training step adds its `MEASURES` to, of the images of that step, as a dict.

    Inside, scale and spread of the maps that the transformer samples with; the fraction of the localization's hidden
    units (after the ReLU of `fc_loc`) that are not 0; the L2 norms of the gradient of all weights, and of those of
    `localization`, before clipping.
    """
    steps, seen = [], {"hidden": torch.zeros(1)}
    gradients = {parameter: torch.zeros_like(parameter) for parameter in model.parameters()}
    predict = model.stn.theta

    def theta(images):
        maps = predict(images)
        seen["theta"] = maps.detach()
        return maps

    def keep(parameter):  # at once, since a step begins after clipping
        gradients[parameter].copy_(parameter.grad)

    def norm_of(part):
        return get_total_norm([gradients[parameter] for parameter in part.parameters()])

    def step_begins(*_):
        maps, active = seen["theta"], (seen["hidden"] > 0).float().mean()
        norms = norm_of(model), norm_of(model.stn.localization)
        values = (stn.inside(maps), stn.scale(maps), active, stn.spread(maps), *norms)
        steps.append(dict(zip(MEASURES, (value.item() for value in values), strict=True)))

    model.stn.theta = theta
    model.stn.fc_loc[1].register_forward_hook(lambda module, inputs, output: seen.update(hidden=output.detach()))
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(keep)
    optimizer.register_step_pre_hook(step_begins)
    return steps


def replay(folder, epoch):
    """Trains to the end of `epoch`, as the run in `folder` did, from weights that it saved before the epoch before.

    Returns the `MEASURES` of each step of that epoch, none if `epoch` is 1, and of `epoch`, two lists of dicts, see
    `record`. Raises RunError if the run is not one of SGD without momentum, its script, weights or digits are not
    there, or the losses are not those of the run.
    """
    run, model, optimizer, to_batch = rebuild(folder)
    if type(optimizer) is not torch.optim.SGD or any(group["momentum"] for group in optimizer.param_groups):
        raise RunError(f"{folder} is a run of {run['optimizer']}, whose state is not saved: give one of plain SGD")
    first = max(0, (epoch - 2) // common.FIGURE_EVERY * common.FIGURE_EVERY)
    load_weights(folder, first, model)
    torch.set_num_threads(run["threads"])
    (images, labels), _, _ = common.load_canvases(run["dataset"], "data", run["digits"], run["limit"])
    before, steps = [], record(model, optimizer)
    for now in range(first + 1, epoch + 1):
        before = steps.copy()
        steps.clear()
        torch.manual_seed(10_000 * run["seed"] + now)
        loss = common.train(model, optimizer, images, labels, to_batch, run["max_grad_norm"])["train/loss"]
        wanted = run["history"][now - 1]["train/loss"]
        if loss != wanted:
            raise RunError(
                f"{folder} is another machine's run, or of other versions: its loss in epoch {now} was {wanted}, here "
                f"it is {loss}: replay it where it ran ({run['device']}, {run['cpu']}, torch {run['torch']})"
            )
    return before, steps


def failing_step(steps):
    """The first step in which under 1 % of sampling points are inside or under 1 % of hidden units active.

    If there is none, the first with a spread under 0.01: one map for all images, though hidden units are active. None
    if there is none of these.
    """
    for measures in (("inside", "active"), ("spread",)):
        for i, step in enumerate(steps):
            if any(step[measure] < 0.01 for measure in measures):
                return i
    return None


def add_replay(folder, epoch=None):
    """Adds the 200 steps before and after a run's failing step to deaths.csv, in place of those that are there.

    Those before reach into the epoch before; those after end with the epoch.

    Raises RunError if `folder` holds no finished run, or no such step is in `epoch`, or `replay` does.
    """
    run = read_folder(folder)
    if not ended(run):
        raise RunError(f"{folder} is not finished, {run['epoch']} of {run['epochs']} epochs: let it come to its end")
    epoch = run["failed"] if epoch is None else epoch
    if epoch is None:
        raise RunError(f"{folder} neither collapsed nor lost its solution: give a run that failed, or an EPOCH")
    if not 1 <= epoch <= run["epoch"]:
        raise RunError(f"{folder} has no epoch {epoch}: give one from 1 to {run['epoch']}")
    before, steps = replay(folder, epoch)
    end = failing_step(before[-1:] + steps)
    if not end:
        other = "is never so: try a later EPOCH" if end is None else "begins so: try an earlier EPOCH"
        raise RunError(f"{folder} fails where inside, active or spread gets under 0.01, and epoch {epoch} {other}")
    steps = before + steps
    end += len(before[:-1])  # steps are counted from here
    path, key = ASSETS / "deaths.csv", {name: run[name] for name in KEY} | {"epoch": epoch}
    rows = [row for row in read_table(path) if any(row[name] != key[name] for name in KEY)] if path.exists() else []
    around = range(max(0, end - 200), min(len(steps), end + 201))
    for i in around:
        rows.append(key | {"step": i - end} | {name: float(f"{steps[i][name]:.6g}") for name in MEASURES})
    rows.sort(key=lambda row: [(row[name] is not None, row[name]) for name in KEY])
    write_table(path, [*KEY, "step", *MEASURES], rows)
    print(f"{len(around)} steps of epoch {epoch} of {folder} are in {path}")


def main():
    if len(sys.argv) not in (2, 3) or not all(map(str.isdecimal, sys.argv[2:])):
        sys.exit("usage: python assets/replay_death.py RUN_FOLDER [EPOCH]")
    try:
        add_replay(Path(sys.argv[1]), *map(int, sys.argv[2:]))
    except (RunError, OSError) as error:
        sys.exit(f"replay_death.py: error: {error}")


if __name__ == "__main__":
    main()
