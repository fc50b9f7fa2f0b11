"""Replays the epoch in which a run's transformer failed, step by step, and adds it to failures.csv.

Without EPOCH that is the one in which the run failed. A replay begins with weights that the run saved at least an epoch
before, so that it has the steps that lead there. On the machine of the run, with as many threads, it comes to the same
numbers to the last bit, which is checked: not so where an optimizer has a state, unless it begins with the run.
"""

from pathlib import Path

import torch
from torch import nn
from torch.nn.utils import get_total_norm

import common
import stn
from assets import ASSETS, Command
from assets.rebuild import SavedRun
from assets.records import add_rows, key_columns, read_folder
from common import RunError

MEASURES = ("inside", "scale", "active", "spread", "gradient", "gradient of the localization net")
AROUND = 200  # steps that are kept before the failing one, and after it


def record(model, optimizer):
    """Returns a list that each training step adds its `MEASURES` to, of the images of that step, as a dict.

    Inside, scale and spread of the maps that the transformer samples with; the fraction of the localization net's last
    hidden units that are positive; the L2 norms of the gradient of all weights, and of the convolutions' of the
    localization net, before clipping.
    """
    steps, seen = [], {"hidden": torch.zeros(1)}
    gradients = {parameter: torch.zeros_like(parameter) for parameter in model.parameters()}
    predict = model.stn.theta

    def theta(images):
        maps = predict(images)
        if torch.is_grad_enabled():  # else it is asked for the motion of a step
            seen["theta"] = maps.detach()
        return maps

    def keep_hidden(module, inputs):
        if torch.is_grad_enabled():
            seen["hidden"] = inputs[0].detach()

    def keep_gradient(parameter):  # at once, since a step begins after clipping
        gradients[parameter].copy_(parameter.grad)

    def norm_of(part):
        return get_total_norm([gradients[parameter] for parameter in part.parameters()])

    def step_begins(*_):
        maps, active = seen["theta"], (seen["hidden"] > 0).float().mean()
        norms = norm_of(model), norm_of(model.stn.localization)
        values = (stn.inside(maps, model.stn.out_size), stn.scale(maps), active, stn.spread(maps), *norms)
        steps.append(dict(zip(MEASURES, (value.item() for value in values), strict=True)))

    model.stn.theta = theta
    last_layer = [module for module in model.stn.modules() if isinstance(module, nn.Linear)][-1]
    last_layer.register_forward_pre_hook(keep_hidden)
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(keep_gradient)
    optimizer.register_step_pre_hook(step_begins)
    return steps


def replay(folder, epoch):
    """Trains to the end of `epoch`, as the run in `folder` did, from weights that it saved before the epoch before.

    Returns the `MEASURES` of each step of the epoch before, none if `epoch` is 1, and of `epoch`, two lists of dicts,
    see `record`. Raises RunError if its script, weights or digits are not there, or the losses are not those of the
    run: on another machine, and where an optimizer with a state or a schedule does not start with the run.
    """
    saved = SavedRun(folder)
    run = saved.run
    first = max(0, (epoch - 2) // common.FIGURE_EVERY * common.FIGURE_EVERY)
    saved.load(first)
    torch.set_num_threads(run["threads"])
    before, steps = [], record(saved.model, saved.optimizer)
    for now in range(first + 1, epoch + 1):
        before = steps.copy()
        steps.clear()
        loss = saved.train_epoch(now)["train/loss"]
        wanted = run["history"][now - 1]["train/loss"]
        if loss != wanted:
            raise RunError(
                f"{folder} trains otherwise here: its loss in epoch {now} was {wanted}, and is {loss}. Replay it where "
                f"it ran ({run['device']}, {run['cpu']}, torch {run['torch']}); where its optimizer has a state "
                f"({run['optimizer']}), give an EPOCH up to {common.FIGURE_EVERY + 1}"
            )
    return before, steps


def find_failing_step(steps, start=0):
    """Number of the first step from `start` on with under 1 % of sampling points inside or of hidden units active.

    If there is none, of the first with a spread under 0.01: one map for all images, though hidden units are active.
    None if there is none of these.
    """
    for measures in (("inside", "active"), ("spread",)):
        for i in range(start, len(steps)):
            if any(steps[i][measure] < 0.01 for measure in measures):
                return i
    return None


def add_replay(folder, epoch=None, assets=ASSETS):
    """Adds the 200 steps before and after a run's failing step to failures.csv, in place of those that are there.

    Those before reach into the epoch before; those after end with the epoch.

    Raises RunError if `folder` holds no run, or no such step is in `epoch`, or `replay` does.
    """
    run = read_folder(folder)
    epoch = run["failed"] if epoch is None else epoch
    if epoch is None:
        raise RunError(f"{folder} neither collapsed nor lost its solution: give a run that failed, or an EPOCH")
    if not 1 <= epoch <= run["epoch"]:
        raise RunError(f"{folder} has no epoch {epoch}: give one from 1 to {run['epoch']}")
    before, steps = replay(folder, epoch)
    start = max(0, len(before) - 1)  # the step before the epoch's first, which should not be a failing one
    steps = before + steps
    failing = find_failing_step(steps, start)
    when = f"{folder} fails where inside, active or spread gets under 0.01, and epoch {epoch}"
    if failing is None:
        raise RunError(f"{when} is never so: try a later EPOCH")
    if failing == start:
        raise RunError(f"{when} begins so: try an earlier EPOCH")
    around = range(max(0, failing - AROUND), min(len(steps), failing + AROUND + 1))
    key = key_columns(run, epoch)
    add_rows(assets / "failures.csv", [key | {"step": i - failing} | steps[i] for i in around])
    print(f"{len(around)} steps of epoch {epoch} of {folder} are in {assets / 'failures.csv'}")


def main():
    command = Command(prog="python -m assets.replay", description=__doc__)
    command.add_argument("folder", type=Path, metavar="RUN_FOLDER")
    command.add_argument("epoch", type=int, nargs="?", metavar="EPOCH")
    command.set_defaults(function=add_replay)
    command.run()


if __name__ == "__main__":
    main()
