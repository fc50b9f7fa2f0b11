"""A run again as it was made, by its experiment's script, with the weights that it saved: for what looks into runs."""

from dataclasses import replace

import torch

import common
from assets import ASSETS
from assets.records import SETTINGS, format_cell, read_folder, settings_of

ROOT = ASSETS.parent


class SavedRun:
    """The run in a folder: `run`, see `records.read_folder`, its `experiment`, its images, its network as untrained.

    Raises RunError if the folder holds no run, or the experiment's script is gone or another than when it ran.
    """

    def __init__(self, folder):
        self.folder, self.run = folder, read_folder(folder)
        script = ROOT / f"classification_experiment_{self.run['experiment']}.py"
        experiments = common.read_script(script) if script.exists() else []
        variants = {format_cell(experiment.variant) or None: experiment for experiment in experiments}
        if self.run["variant"] not in variants:
            raise common.RunError(f"{folder} is a run of {script} that it does not have any more: put that there")
        chosen = {name: self.run[name] for name in ("dataset", "digits", "limit", "seed")}
        self.experiment = replace(variants[self.run["variant"]], **chosen)
        code = {path: (ROOT / path).read_text(encoding="utf-8") for path in self.run["code"] if (ROOT / path).exists()}
        now = settings_of(self.experiment.settings()) | {"code": code}
        if differs := common.difference(self.run, now, SETTINGS):
            raise common.RunError(f"{script} was changed since {folder} ({differs}): put that script there")
        sets = common.load_images(self.run["dataset"], self.run["data_dir"], self.run["digits"], self.run["limit"])
        self.train_set, self.test_set, *_ = sets
        self.network = common.make_network(self.experiment, images=self.train_set[0])
        self.model, self.optimizer = self.network.model, self.network.optimizer

    def load(self, epoch):
        """Loads what it saved after an epoch, a number or a text, into the model. Raises RunError if there is none."""
        path = self.folder / "weights" / f"{epoch:0>3}.pt"
        if not path.exists():
            there = ", ".join(sorted(other.stem for other in path.parent.glob("*.pt")))
            raise common.RunError(f"{self.folder} has no weights of epoch {epoch}: give one that it has, {there}")
        self.model.load_state_dict(common.load_state(path))

    def train_epoch(self, epoch):
        """Trains as it did in an epoch, if the weights are those of the epoch before; returns `common.train`'s."""
        torch.manual_seed(10_000 * self.run["seed"] + epoch)
        return common.train(self.experiment, self.network, *self.train_set)
