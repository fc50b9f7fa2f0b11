"""A run again as it was made, by its experiment's script, with the weights that it saved: for what looks into runs."""

from dataclasses import replace

import torch

import common
from assets import ASSETS
from assets.records import difference, format_cell, read_folder

ROOT = ASSETS.parent


class SavedRun:
    """The run in a folder: `run`, see `records.read_folder`, its `experiment`, and its network as before training.

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
        self.network = common.make_network(self.experiment)
        self.model, self.optimizer = self.network.model, self.network.optimizer
        code = {path: (ROOT / path).read_text(encoding="utf-8") for path in self.run["code"] if (ROOT / path).exists()}
        if differs := difference(self.experiment.settings() | {"code": code}, self.run):
            raise common.RunError(f"{script} was changed since {folder} ({differs}): put that script there")

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

    def canvases(self):
        """Returns (images, labels) that it trained on, and the same that it tested on."""
        run = self.run
        train_set, test_set, *_ = common.load_images(run["dataset"], run["data_dir"], run["digits"], run["limit"])
        return train_set, test_set

    def train_epoch(self, epoch, images, labels):
        """Trains as it did in an epoch, if the weights are those of the epoch before; returns `common.train`'s."""
        torch.manual_seed(10_000 * self.run["seed"] + epoch)
        return common.train(self.experiment, self.network, images, labels)
