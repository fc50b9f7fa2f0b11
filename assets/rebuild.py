"""A run again as it was made, by its experiment's script, with the weights that it saved: for what looks into runs."""

import inspect
import runpy
from functools import partial
from unittest import mock

import torch

import common
import stn
from assets import ASSETS
from assets.records import read_folder, setting_differences

ROOT = ASSETS.parent


def read_calls(script):
    """Returns the arguments of each `run_experiment` in a script, as dicts; "settings" are those of run.json."""
    signature, calls = inspect.signature(common.run_experiment), []

    def keep(**given):
        call = signature.bind(**given)
        call.apply_defaults()
        settings = {name: call.arguments[name] for name in ("mean", "std", "fill", "max_grad_norm", "max_motion")}
        settings |= {name: common.describe(call.arguments[name]) for name in ("transformer", "penalty")}
        calls.append(call.arguments | {"settings": settings | {"batch_size": common.BATCH_SIZE}})

    with mock.patch.object(common, "run_experiment", keep):
        runpy.run_path(str(script), run_name="__main__")
    return calls


class SavedRun:
    """The run in a folder: `run`, see `records.read_folder`, and its `model` and `optimizer`, as before training.

    Raises RunError if the folder holds no run, or the experiment's script is gone or another than when it ran.
    """

    def __init__(self, folder):
        self.folder, self.run = folder, read_folder(folder)
        script = ROOT / f"classification_experiment_{self.run['experiment']}.py"
        calls = read_calls(script) if script.exists() else []
        variants = ["" if call["variant"] is None else str(call["variant"]) for call in calls]
        if (self.run["variant"] or "") not in variants:
            raise common.RunError(f"{folder} is a run of {script} that it does not have any more: put that there")
        call = calls[variants.index(self.run["variant"] or "")]
        self.model = stn.STNClassifier(common.SIDES[self.run["dataset"]], call["fill"], call["transformer"])
        self.model.to(memory_format=torch.channels_last)
        self.optimizer = call["make_optimizer"](self.model)
        made = call["settings"] | {"optimizer": common.describe_optimizer(self.optimizer, self.model)}
        scheduler = call["make_scheduler"](self.optimizer) if call["make_scheduler"] else None
        made["scheduler"] = common.describe_scheduler(scheduler)
        if differs := setting_differences(self.run | made, self.run):
            raise common.RunError(f"{script} was changed since {folder} ({'; '.join(differs)}): put that script there")
        self.to_batch = partial(common.normalize, mean=self.run["mean"], std=self.run["std"])
        self.bounds_and_penalty = call["max_grad_norm"], call["max_motion"], call["penalty"]

    def saved_epochs(self):
        """The epochs that it saved weights after, in files named as 005.pt; others beside them are not the run's."""
        stems = [path.stem for path in (self.folder / "weights").glob("*.pt")]
        return sorted(int(stem) for stem in stems if stem.isdecimal() and stem == f"{int(stem):03}")

    def load(self, epoch):
        """Loads what it saved after an epoch, a number or a text, into the model. Raises RunError if there is none."""
        saved = self.saved_epochs()
        if str(epoch) not in map(str, saved):
            raise common.RunError(
                f"{self.folder} has no weights of epoch {epoch}: give one of those that it has, {saved}"
            )
        self.model.load_state_dict(common.load_state(self.folder / "weights" / f"{int(epoch):03}.pt"))

    def canvases(self, limit=60000):
        """Returns (images, labels) that it trained on, the first `limit` of them, and the same that it tested on."""
        run = self.run
        *sets, _ = common.load_canvases(run["dataset"], run["data_dir"], run["digits"], min(limit, run["limit"]))
        return sets

    def train_epoch(self, epoch, images, labels):
        """Trains as it did in an epoch, if the weights are those of the epoch before; returns `common.train`'s."""
        torch.manual_seed(10_000 * self.run["seed"] + epoch)
        return common.train(self.model, self.optimizer, images, labels, self.to_batch, *self.bounds_and_penalty)

    def test(self, images, labels):
        """Returns what `common.test` measures. Turns dropout off."""
        return common.test(self.model, images, labels, self.to_batch)
