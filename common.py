"""What the experiments share, in the order in which data flow: digits, data sets, experiment, training, figure, run.

A script calls `run_experiment` and nothing else. The loop over the epochs is `run_epochs`.
"""

import argparse
import ast
import atexit
import inspect
import io
import json
import math
import os
import platform
import re
import runpy
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import textwrap
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cache, partial
from http.client import HTTPException
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import NamedTuple

import imageio.v3 as imageio
import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from filelock import FileLock, Timeout
from PIL import Image, ImageDraw, ImageFont
from torch import nn
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR, ReduceLROnPlateau
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from torchvision.datasets import MNIST
from torchvision.datasets.utils import check_integrity
from torchvision.transforms.functional import to_pil_image
from tqdm import tqdm, trange

import stn

BATCH_SIZE = 64
FIGURE_EVERY = 5  # epochs
CANVAS, PATCH, PATCHES = 60, 6, 8  # side of a canvas and of a clutter patch in pixels, patches on a canvas
TRAIN_SEED, TEST_SEED = 0, 1  # of the canvases: they are the same in every run
MOTION_EVERY, DRIFT_EVERY = 16, 64  # steps
LIMIT_IMAGES, DRIFT_IMAGES = 16, 64  # of a batch that its step is limited by; of the training set, to measure drift on
STEPPED_EACH_BATCH = OneCycleLR, CyclicLR  # other schedulers are stepped once an epoch
BAR = {"leave": False, "disable": None}  # of tqdm: none where stderr is no terminal
TENSORBOARD_OPTIONS = "--port 7010 --samples_per_plugin images=1000"  # else it shows 10 figures of a run
EMBEDDED = Path(__file__).parent / "assets" / "mnist_5k.npz"


class RunError(Exception):
    """A failure that the user can mend; its message is one line that says how."""


def one_line(error):
    """What an error says, its lines joined, or its name if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def say(line, file=None):
    """Prints a line between the progress bars."""
    with tqdm.external_write_mode(file):
        print(line, file=file, flush=True)


# --------------------------------------------------------------------------------------------------------------- digits

UNPACKED = {  # MNIST's files and their MD5; torchvision knows those of the archives
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


def fetch_mnist(data_dir):
    """Unpacks MNIST in `data_dir`, from its archives there or downloaded ones, unless it is there and whole.

    Raises RunError if it cannot be downloaded; all files are as they were then, also damaged ones.
    """
    raw = Path(data_dir, "MNIST", "raw")
    if all(check_integrity(raw / name, md5) for name, md5 in UNPACKED.items()):
        return  # nothing is written: the folder may be read-only
    socket.setdefaulttimeout(10)
    try:
        raw.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download", dir=data_dir) as beside:
            # the archives, without what is unpacked
            fresh = shutil.copytree(raw, Path(beside, "MNIST", "raw"), ignore=shutil.ignore_patterns("*ubyte"))
            MNIST(beside, download=True)  # downloads the archives that are not whole, and unpacks all
            for path in fresh.glob("*ubyte*"):
                path.replace(raw / path.name)  # whole, whoever else does the same meanwhile
    except (RuntimeError, HTTPException, OSError) as error:
        problem = f"MNIST is not in {data_dir}, or damaged, and cannot be downloaded: copy its files to {raw}"
        advice = f"or use --digits embedded, or another --data-dir ({one_line(error)})"
        raise RunError(f"{problem}, {advice}") from error


def load_digits(data_dir, digits="auto"):
    """Returns (images, labels) of MNIST's training set, the same of its test set, and which digits these are.

    `digits` is "full" for all 60,000 and 10,000, in `data_dir` or downloaded into it; "embedded" for 4,000 and 1,000 of
    them, as many of each class, without a network; "auto" for the first where they can be had, else for the second.
    Images are uint8 (N, 28, 28), 0 is black, labels int64 (N,), 0 to 9.

    Raises RunError if `digits` is "full" and MNIST cannot be had.
    """
    if digits != "embedded":
        try:
            fetch_mnist(data_dir)
            train, test = MNIST(data_dir, train=True), MNIST(data_dir, train=False)
            return (train.data.numpy(), train.targets.numpy()), (test.data.numpy(), test.targets.numpy()), "full"
        except RunError as error:
            if digits == "full":
                raise
            say(f"!!! MNIST cannot be had: going on with the 5,000 EMBEDDED digits !!!\n{error}", sys.stderr)
    with np.load(EMBEDDED) as file:
        images, labels = file["images"], file["labels"].astype(np.int64)
    return (images[:4000], labels[:4000]), (images[4000:], labels[4000:]), "embedded"


# ------------------------------------------------------------------------------------------------------------ data sets


def clutter(images, patch_source, seed):
    """Puts each digit at a random place of a 60 x 60 canvas, over 8 random 6 x 6 patches of random other digits.

    The recipe of the published runs: a later patch overwrites an earlier one, the digit lies over all of them, and
    every pixel that is not 0 becomes 255. The first N canvases do not depend on how many are made.

    `images` are uint8 (N, 28, 28), `patch_source`, which patches are cut from, uint8 (M, 28, 28), and `seed` is of all
    that is random here. Returns uint8 (N, 60, 60), values 0 and 255.
    """
    rng, side = np.random.default_rng(seed), images.shape[-1]
    patch = [len(patch_source), side - PATCH, side - PATCH, CANVAS - PATCH, CANVAS - PATCH]
    bounds = np.array([CANVAS - side, CANVAS - side] + PATCHES * patch)
    canvases = np.zeros((len(images), CANVAS, CANVAS), np.uint8)
    for digit, canvas in zip(images, canvases, strict=True):
        numbers = (rng.random(len(bounds)) * bounds).astype(int)
        for source, row, column, y, x in numbers[2:].reshape(PATCHES, 5):
            canvas[y : y + PATCH, x : x + PATCH] = patch_source[source, row : row + PATCH, column : column + PATCH]
        top, left = numbers[:2]
        window = canvas[top : top + side, left : left + side]
        np.maximum(window, digit, out=window)
    canvases[canvases > 0] = 255
    return canvases


def enlarge(images, patch_source, seed):
    """Canvases with every pixel as 2 x 2."""
    return clutter(images, patch_source, seed).repeat(2, axis=1).repeat(2, axis=2)


def load_mnist(data_dir, digits, limit, draw=None):
    """Returns `limit` images and labels to train on, a sixth of it to test on, and which digits these are.

    `draw`, such as `clutter`, makes the images of the digits; where the digits are fewer they are used again.
    """
    *sets, which = load_digits(data_dir, digits)
    patch_source = np.concatenate([images for images, _ in sets])
    drawn = []
    for (images, labels), count, seed in zip(sets, (limit, limit // 6), (TRAIN_SEED, TEST_SEED), strict=True):
        index = np.arange(count) % len(images)
        images = images[index]
        drawn.append((draw(images, patch_source, seed) if draw else images, labels[index]))
    return *drawn, which


class Dataset(NamedTuple):
    """A choice of --dataset.

    `load(data_dir, digits, limit)` returns images uint8 (N, side, side) or (N, channels, side, side) and labels (N,) to
    train on, the same to test on, and which digits these are, "full" if there is no choice.
    """

    load: Callable
    side: int  # of an image in pixels
    moves: bool  # whether what is to be seen lies elsewhere in each image
    channels: int = 1


DATASETS = {
    "cluttered": Dataset(partial(load_mnist, draw=clutter), side=CANVAS, moves=True),
    "mnist": Dataset(load_mnist, side=28, moves=False),
    "enlarged": Dataset(partial(load_mnist, draw=enlarge), side=2 * CANVAS, moves=True),
}


def load_images(dataset, data_dir, digits, limit):
    """Returns images (N, channels, side, side) and labels (N,) to train on, as tensors, and the same to test on.

    At most `limit`, and a sixth of it. And which digits these are, and a checksum of all that. Raises RunError if the
    data set has others than it says.
    """
    side, channels = DATASETS[dataset].side, DATASETS[dataset].channels
    *sets, which = DATASETS[dataset].load(data_dir, digits, limit)
    tensors, checksum = [], 0
    for (images, labels), count in zip(sets, (limit, limit // 6), strict=True):
        images, labels = np.ascontiguousarray(images[:count]), np.ascontiguousarray(labels[:count])
        if images.ndim == 3:
            images = images[:, None]
        is_right = images.dtype == np.uint8 and images.shape == (len(labels), channels, side, side)
        if not is_right or not len(labels) or set(labels.tolist()) - set(range(10)):
            found = f"images {images.dtype} {images.shape} and {len(labels)} labels"
            wanted = f"uint8 (N, {channels}, {side}, {side}), N over 0, and N labels from 0 to 9"
            raise RunError(f"the data set {dataset} has {found}, but should have {wanted}")
        checksum = zlib.crc32(labels, zlib.crc32(images, checksum))
        tensors.append((torch.from_numpy(images), torch.from_numpy(labels)))
    return *tensors, which, checksum


# -------------------------------------------------------------------------------------------------- what defines a run


def without_numpy(value):
    """The value with Python's numbers for numpy's, also in dicts, lists and tuples: torch.load takes no others."""
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in (list, tuple):
        return type(value)(map(without_numpy, value))
    if type(value) is dict:
        return {without_numpy(key): without_numpy(item) for key, item in value.items()}
    return value


SIMPLE = bool, int, float, str


def describe(given):
    """What a script gave, as JSON has it: a number or a text, or a name with the numbers and texts bound to it.

    Such as "SpatialTransformer(slope=0.1)" of a `partial`. What a class or function does is told by its script's text;
    a number that it takes from the script need not be, as one that is read from a file.
    """
    if given is None or isinstance(given, SIMPLE):
        return given
    if isinstance(given, (list, tuple)):
        return str([describe(each) for each in given])
    if isinstance(given, partial):
        name, held = describe(given.func), {str(i): value for i, value in enumerate(given.args)} | given.keywords
    elif inspect.isfunction(given):
        defaults = {each.name: each.default for each in inspect.signature(given).parameters.values()}
        variables = inspect.getclosurevars(given)
        name, held = given.__name__, defaults | variables.nonlocals | variables.globals
    elif inspect.isclass(given) or inspect.isroutine(given):
        return given.__name__
    else:
        name, held = type(given).__name__, getattr(given, "__dict__", {})
    shown = [f"{key}={held[key]}" for key in held if isinstance(held[key], SIMPLE) and not key.startswith("_")]
    return f"{name}({', '.join(shown)})" if shown else name


def names_of_parts(module, held, name=""):
    """Names of the largest parts of a network whose parameters are all among those `held`, a set of ids."""
    own = {id(parameter) for parameter in module.parameters()}
    if own and own <= held:
        return [name]
    dot = name and name + "."
    names = [dot + key for key, parameter in module.named_parameters(recurse=False) if id(parameter) in held]
    return sum((names_of_parts(child, held, dot + key) for key, child in module.named_children()), names)


def describe_optimizer(optimizer, model):
    """Its class, and each parameter group's rate, options that are not the class's defaults, and what it holds."""
    parameters = inspect.signature(type(optimizer)).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items() if name != "lr"}
    groups = []
    for group in optimizer.param_groups:
        group = group | {"lr": group.get("initial_lr", group["lr"])}  # a scheduler's, if any
        held = ", ".join(names_of_parts(model, {id(parameter) for parameter in group.pop("params")}))
        group.pop("initial_lr", None)
        options = ", ".join(f"{key}={value}" for key, value in group.items() if defaults.get(key) != value)
        groups.append(f"{options} on {held}" if held else options)
    return f"{type(optimizer).__name__}({'; '.join(groups)})"


@cache
def read_code(script):
    """The texts of a script and of what it imports from its folder, {path: text}, as they are when first asked for."""
    script = Path(script).resolve()
    folder, files = script.parent, {script}
    for name, module in list(sys.modules.items()):
        file = Path(getattr(module, "__file__", None) or "")
        installed = "site-packages" in file.parts or name.partition(".")[0] in sys.stdlib_module_names
        if file.suffix == ".py" and file.is_absolute() and file.resolve().is_relative_to(folder) and not installed:
            files.add(file.resolve())
    files -= {Path(module.__file__).resolve() for module in (stn, sys.modules[__name__])}
    return {str(file.relative_to(folder)): file.read_text(encoding="utf-8-sig") for file in sorted(files)}


def is_run_experiment(node):
    return isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "run_experiment"


def is_sweep(node):
    """Whether it is a loop over runs whose values all show in their settings, as lambdas and containers need not."""
    if not isinstance(node, ast.For) or not any(map(is_run_experiment, ast.walk(node))):
        return False
    rows = [each.elts if isinstance(each, ast.Tuple) else [each] for each in ast.iter_child_nodes(node.iter)]
    inner = (each for row in rows for value in row for each in ast.walk(value))
    return not any(isinstance(each, (ast.Lambda, ast.List, ast.Tuple, ast.Dict, ast.Set)) for each in inner)


def defining_lines(text):
    """The lines of a script that define its runs, whatever its layout.

    All but comments, docstrings, titles, epochs, and the values of a sweep.
    """
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        if is_sweep(node):
            node.iter = ast.Name("...")
        if is_run_experiment(node):
            node.keywords = [keyword for keyword in node.keywords if keyword.arg not in ("title", "epochs")]
    return ast.unparse(tree).splitlines()


def changed_line(before, now):
    """The first line that differs between what `read_code` returned before and now, as a text; None if none does."""
    for path in sorted(before.keys() | now.keys()):
        lines = [defining_lines(code.get(path, "")) for code in (before, now)]
        for pair in zip_longest(*lines, fillvalue=""):
            was, now_is = textwrap.dedent("\n".join(pair)).split("\n")
            if was != now_is:
                start = max(0, len(os.path.commonprefix((was, now_is))) - 30)
                return f"{path}: `{was[start : start + 80]}` was there, now `{now_is[start : start + 80]}`"
    return None


# ----------------------------------------------------------------------------------------------------------- experiment


def option(default=MISSING, within=None, **argument):
    """A field that is an option of the command line too, an `argument` as argparse has it; `within` is a range."""
    return field(default=default, metadata={"within": within, "argument": argument})


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What defines an experiment and, with the command line's choices, a run. The arguments of `run_experiment`."""

    name: str  # of the script's file, without .py; no argument
    title: str  # what sets the experiment apart, short enough for a legend
    mean: float  # the network sees (image - mean) / std of images in [0, 1]
    std: float
    make_optimizer: Callable  # called with the `stn.STNClassifier`, returns its torch.optim.Optimizer
    fill: float = 0.0  # value that the transformer samples outside the normalized image
    transformer: Callable = stn.SpatialTransformer  # a class, or what else is called like this one
    max_grad_norm: float | None = None  # bound of the norm of the whole gradient, by `clip_grad_norm_`
    max_motion: float | None = None  # bound of a step's motion in pixels of the input, by `stn.limit_motion`
    make_scheduler: Callable | None = None  # called with the optimizer, returns its scheduler, stepped as torch has it
    penalty: Callable | None = None  # called with `theta` (N, 2, 3) of a batch, returns a scalar to add to the loss
    drift: float | None = None  # target of a `stn.DriftLR` on the optimizer's first group, the localization net's
    variant: float | str | None = None  # what tells the runs of a script that makes several apart, a number or a word
    epochs: int = option(within=range(1, 10_000), help="train up to this epoch")
    dataset: str = option("cluttered", choices=DATASETS, help="images to train and test on")
    digits: str = option("auto", choices=["auto", "full", "embedded"], help="MNIST, or 5,000 of it")
    limit: int = option(60_000, range(384, 60_001), help="train on the first N images, test on N/6")
    seed: int = option(0, range(100_000), help="of initialization, shuffling and dropout")

    def normalize(self, images):
        """Turns uint8 (N, C, side, side) into the float32 batch that the network sees."""
        return images.float().div_(255).sub_(self.mean).div_(self.std)

    def denormalize(self, batch):
        """Turns what the network sees back into images in [0, 1]."""
        return (batch * self.std + self.mean).clamp(0, 1)

    def settings(self):
        """All that defines a run but its code and its images, as JSON has it."""
        network = make_network(self)
        given = vars(self) | {"experiment": self.name, "batch_size": BATCH_SIZE, "scheduler": network.scheduler}
        given["optimizer"] = describe_optimizer(network.optimizer, network.model)
        return {name: describe(given[name]) for name in SETTINGS if name != "data"}


WITH_DEFAULT = [each for each in fields(Experiment) if each.default is not MISSING]
DEFAULTS = {each.name.removeprefix("make_"): describe(each.default) for each in WITH_DEFAULT}
OPTIONS = [each for each in fields(Experiment) if each.metadata]
SETTINGS = "experiment", "mean", "std", "optimizer", *DEFAULTS, "batch_size", "data"
TOLD_BY_CODE = "transformer", "scheduler", "penalty"  # in other words in runs from before their code was kept


def difference(before, now, names):
    """What sets a run apart from one before, of the settings `names` and its code, as a text; None if nothing does.

    Both are dicts of settings and "code", as `read_code` returns it. Where one does not know its images or its code,
    that is not compared, nor are, where one has lost its code, settings that the code tells.
    """
    lost_code = any(not run.get("code", True) for run in (before, now))
    for name in names:
        told_by_lost_code = lost_code and name in TOLD_BY_CODE
        unknown_images = name == "data" and None in (before[name], now[name])
        if before[name] != now[name] and not told_by_lost_code and not unknown_images:
            return f"{name} was {before[name]}, is {now[name]}"
    return changed_line(before["code"], now["code"]) if before.get("code") and now.get("code") else None


class Network(NamedTuple):
    """What a run trains, with what it trains it."""

    model: stn.STNClassifier
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None
    drift_lr: stn.DriftLR | None = None


def make_network(experiment, device="cpu", images=None):
    """Returns the `Network` of an experiment as it is before training.

    `images` are those that it trains on, uint8 (N, channels, side, side); without them it has no `stn.DriftLR`. Raises
    RunError if the loop cannot step the optimizer, or drift cannot be followed.
    """
    torch.manual_seed(10_000 * experiment.seed)
    dataset = DATASETS[experiment.dataset]
    model = stn.STNClassifier(dataset.side, experiment.fill, experiment.transformer, dataset.channels)
    model.to(device, memory_format=torch.channels_last)
    optimizer, drift_lr = experiment.make_optimizer(model), None
    try:
        inspect.signature(optimizer.step).bind()
    except TypeError as error:  # LBFGS
        raise RunError(f"{type(optimizer).__name__}'s step has a {error}, which the loop here does not give") from error
    scheduler = experiment.make_scheduler(optimizer) if experiment.make_scheduler else None
    if experiment.drift and images is not None:
        followed = experiment.normalize(images[:DRIFT_IMAGES])
        try:
            drift_lr = stn.DriftLR(optimizer, model.stn.theta, followed, experiment.drift)
        except ValueError as error:
            raise RunError(f"drift cannot be followed: {error}") from error
    return Network(model, optimizer, scheduler, drift_lr)


def read_script(path):
    """Returns the experiments of a script, a list of `Experiment`, and runs none of them."""
    return runpy.run_path(str(path)).get("experiments", [])


# ------------------------------------------------------------------------------------------------------- train and test

torch.backends.cudnn.allow_tf32 = False  # so that processors differ by rounding alone; matrices have none by default


def drift_figures(thetas):
    """The median and the largest drift over an epoch's windows of 64 steps, by `theta` (N, 2, 3) at their ends."""
    drifts = [stn.drift(before, after).item() for before, after in pairwise(thetas)]
    return {"stn/drift": float(np.median(drifts)) if drifts else None, "stn/drift_max": max(drifts, default=None)}


def localization_rate(network):
    """The learning rate of the localization net, the largest if it has several, None if it is not trained."""
    weights = {id(weight) for weight in network.model.stn.parameters()}
    groups = [group for group in network.optimizer.param_groups if weights & set(map(id, group["params"]))]
    rate = max((float(group["lr"]) for group in groups), default=None)
    return min(rate, network.drift_lr.rate) if network.drift_lr else rate


def train(experiment, network, images, labels):
    """Trains for one epoch on uint8 images (N, channels, side, side) and their labels (N,).

    Returns the mean loss, without the penalty; median and maximum of the steps' gradient norms before clipping (L2, of
    all weights), and of `stn.motion`, of every 16th step on its batch; `drift_figures` of the first 64 images;
    `localization_rate`.
    """
    model, optimizer = network.model.train(), network.optimizer
    total, norms, motions = torch.zeros((), device=images.device), [], []
    followed = experiment.normalize(images[:DRIFT_IMAGES])
    predict = partial(stn.predict_in_eval_mode, model.stn.theta)
    thetas = [predict(followed)]
    order = torch.randperm(len(images)).to(images.device)
    for step, index in enumerate(tqdm(order.split(BATCH_SIZE), unit="batch", **BAR), start=1):
        batch = experiment.normalize(images[index])
        theta = model.stn.theta(batch)
        loss = F.cross_entropy(model.classifier(model.stn.sample(batch, theta)), labels[index])
        optimizer.zero_grad()
        (loss + experiment.penalty(theta) if experiment.penalty else loss).backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), experiment.max_grad_norm or math.inf))
        measured = step % MOTION_EVERY == 1
        before = predict(batch) if measured else None
        if experiment.max_motion is None:
            optimizer.step()
        else:
            with stn.limit_motion(model.stn.theta, batch[:LIMIT_IMAGES], model.stn, experiment.max_motion):
                optimizer.step()
        if network.drift_lr:
            network.drift_lr.step()
        if isinstance(network.scheduler, STEPPED_EACH_BATCH):
            network.scheduler.step()
        if measured:
            motions.append(stn.motion(before, predict(batch), batch.shape[2:]))
        if step % DRIFT_EVERY == 0:
            thetas.append(predict(followed))
        total += loss.detach() * len(index)  # no .item() here: it would wait for the device in every step
    norms, motions = (torch.stack(values).cpu().numpy() for values in (norms, motions))
    return drift_figures(thetas) | {
        "train/loss": total.item() / len(images),
        "train/grad_norm": float(np.median(norms)),
        "train/grad_norm_max": float(norms.max()),
        "stn/motion": float(np.median(motions)),
        "stn/motion_max": float(motions.max()),
        "stn/rate": localization_rate(network),
    }


@torch.no_grad()
def test(experiment, model, images, labels):
    """Returns loss, accuracy in percent, and the transformer's scale, inside, spread and active, of all images at once.

    Active is the fraction of the localization net's last hidden units that are positive, over images and units; None
    where `theta` comes from no `nn.Linear`.
    """
    model.eval()
    outputs, active = [], []
    last_layer = [module for module in model.stn.modules() if isinstance(module, nn.Linear)][-1:]
    hooks = [each.register_forward_pre_hook(lambda _, inputs: active.append(inputs[0] > 0)) for each in last_layer]
    for batch in map(experiment.normalize, images.split(BATCH_SIZE)):
        theta = model.stn.theta(batch)
        outputs.append((theta, model.classifier(model.stn.sample(batch, theta))))
    for hook in hooks:
        hook.remove()
    theta, logits = map(torch.cat, zip(*outputs, strict=True))
    return {
        "test/loss": F.cross_entropy(logits, labels).item(),
        "test/accuracy": 100 * ((logits.argmax(1) == labels).sum().item() / len(labels)),
        "stn/scale": stn.scale(theta).item(),
        "stn/inside": stn.inside(theta, model.stn.out_size).item(),
        "stn/spread": stn.spread(theta).item(),
        "stn/active": torch.cat(active).float().mean().item() if active else None,
    }


# --------------------------------------------------------------------------------------------------------------- figure

TILE, MARGIN, HEAD = 120, 9, 58  # pixels
PANEL = 4 * TILE + 3  # sixteen tiles, with a line of one pixel between them
ORANGE = "#ff8000"


def draw_tile(image, theta=None, side=TILE):
    """Draws a square image, 0 to 1 or uint8, in the middle of a grey tile of that side, enlarged by a whole factor.

    The image is (1 or 3, n, n), or an array (n, n). With `theta` (2, 3) it is half as large, a thin line is around it,
    and the outline of its region is drawn over it, and clipped at the tile's edge.
    """
    room, grey = (side, "#595959") if theta is None else (side // 2, "#333333")
    tile = Image.new("RGB", (side, side), grey)
    factor = room // image.shape[-1]
    size = factor * image.shape[-1] if factor else room  # shrunk where it is larger than that
    start, end = (side - size) // 2, (side + size) // 2
    tile.paste(to_pil_image(image).resize((size, size), Image.Resampling.BOX), (start, start))
    if theta is not None:
        ImageDraw.Draw(tile).rectangle((start - 1, start - 1, end, end), outline="#777777")
        corners = theta.new_tensor([[-1, -1, 1], [1, -1, 1], [1, 1, 1], [-1, 1, 1], [-1, -1, 1]])
        points = (corners @ theta.T + 1) * size / 2 + start - 0.5  # Pillow's pixels are at whole numbers
        points = points.round().clamp(-1e4, 1e4)
        ImageDraw.Draw(tile).line(points.flatten().tolist(), fill=ORANGE, width=side // 48)
    return tile


@torch.no_grad()
def draw_figure(experiment, model, images, title):
    """Draws 16 images, where the transformer looks in them, and what the classifier sees, as uint8 (H, W, 3).

    In the middle panel an image is half as large, so that a region that leaves it is seen leaving. Images are enlarged
    by whole factors and outlines are not antialiased, which keeps the GIF small.
    """
    model.eval()
    batch = experiment.normalize(images[:16])
    theta = model.stn.theta(batch)
    shown, sampled = (experiment.denormalize(x).cpu() for x in (batch, model.stn.sample(batch, theta)))
    panels = {
        "Dataset images": map(draw_tile, shown),
        "Learned transformations": map(draw_tile, shown, theta.cpu()),
        "Transformed images": map(draw_tile, sampled),
    }
    figure = Image.new("RGB", (4 * MARGIN + 3 * PANEL, HEAD + PANEL + MARGIN), "white")
    put_text = ImageDraw.Draw(figure).text
    size = next(s for s in range(16, 0, -1) if ImageFont.load_default(s).getlength(title) < figure.width - 2 * MARGIN)
    put_text((MARGIN, 6), title, "black", ImageFont.load_default(size))
    for number, (name, tiles) in enumerate(panels.items()):
        left = MARGIN + number * (PANEL + MARGIN)
        put_text((left, HEAD - 5), name, "black", ImageFont.load_default(14), anchor="ls")
        figure.paste("#595959", (left, HEAD, left + PANEL, HEAD + PANEL))
        for i, tile in enumerate(tiles):
            figure.paste(tile, (left + i % 4 * (TILE + 1), HEAD + i // 4 * (TILE + 1)))
    return np.asarray(figure) // 17 * 17  # 16 levels


# ------------------------------------------------------------------------------------------------------ a run's history


def describe_epoch(row):
    """The line of an epoch on the terminal; a figure that was not measured is left out."""
    parts = [f"epoch {row['epoch']:3}  loss {row['train/loss']:.4g}, {row['test/loss']:.4g}"]
    parts.append(f"accuracy {row['test/accuracy']:.2f} %")
    for name, digits in (("scale", 3), ("inside", 2), ("spread", 2), ("drift", 2), ("active", 2)):
        if row["stn/" + name] is not None:
            parts.append(f"{name} {row['stn/' + name]:.{digits}g}")
    return "  ".join([*parts, f"{row['time/epoch_seconds']:.0f} s"])


COLLAPSED = 0.05  # inside under which a transformer sees next to nothing


def collapsed(history):
    """First epoch with `inside` under `COLLAPSED`: the transformer sees next to nothing. None if there is none.

    That is fewer than 40 of an image's 28 x 28 sampling points, on average over the test set. Not 0, because a
    transformer that keeps a corner of a few images in view learns as little. A run can come back.
    """
    return next((row["epoch"] for row in history if row["stn/inside"] < COLLAPSED), None)


def lost_solution(history):
    """First epoch of five in a row with a train loss above 1.5 times its minimum until then. None if there are none."""
    lowest, above = math.inf, 0
    for row in history:
        above = above + 1 if row["train/loss"] > 1.5 * lowest else 0
        if above == 5:
            return row["epoch"] - 4
        lowest = min(lowest, row["train/loss"])
    return None


def failed(history):
    """First epoch in which a run collapsed or lost its solution. None if it did neither."""
    return min(filter(None, (collapsed(history), lost_solution(history))), default=None)


def summarize(history):
    """Best (picked on the test set) and last accuracy in percent, and the epochs of the events."""
    best = max(history, key=lambda row: row["test/accuracy"], default={"epoch": None, "test/accuracy": None})
    return {
        "epoch": len(history),
        "best_accuracy": best["test/accuracy"],
        "best_epoch": best["epoch"],
        "last_accuracy": history[-1]["test/accuracy"] if history else None,
        "collapsed": collapsed(history),
        "lost_solution": lost_solution(history),
        "failed": failed(history),
    }


# --------------------------------------------------------------------------------------------------------------- folder


def write(path, data):
    """Replaces a file as a whole: whatever happens meanwhile, what is found there later is the old file or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    with open(beside, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def write_state(path, state):
    """Writes what `torch.save` makes, which itself would report a full disk as a RuntimeError."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write(path, buffer.getvalue())


def load_state(path, *names):
    """Loads what `write_state` wrote, tensors to the CPU. Raises RunError if it cannot be loaded or lacks a name."""
    data = io.BytesIO(path.read_bytes())
    try:
        state = torch.load(data, map_location="cpu", weights_only=True)
        return state | {name: state[name] for name in names}
    except Exception as error:  # torch raises whatever the damage leads to
        what = "damaged, or with numbers that are not Python's (such as numpy's)"
        advice = "put a whole one there, or choose another --log-dir"
        raise RunError(f"{path} is of another format: {what}: {advice}") from error


class RunFolder:
    """What a run leaves, and how it is found again: history, figures, weights, TensorBoard's events, checkpoint.

    Its `lock` keeps other processes out. Every file but the events is replaced as a whole, and the checkpoint is the
    last of an epoch: an epoch that did not get so far is done again, to the same end. A run that was begun with other
    settings or other code is refused; `facts`, a dict of what else is worth knowing, such as machine and versions, may
    change.
    """

    def __init__(self, path, experiment, code, facts):
        self.path, self.experiment, self.code, self.facts = path, experiment, code, facts
        self.settings, self.history, self.saved = experiment.settings(), [], None
        self.checkpoint, self.lock = path / "checkpoint.pt", FileLock(path / ".lock", timeout=0)

    def headline(self, history):
        """What the run is and where it stands, as the title of a figure."""
        digits = " (embedded digits)" if self.settings["digits"] == "embedded" else ""
        line = f"{self.path.name}{digits}: {self.experiment.title}, epoch {len(history)}"
        if not history:
            return f"{line}, before training"
        line += f", accuracy {history[-1]['test/accuracy']:.2f} %"
        return f"{line}, COLLAPSED in epoch {collapsed(history)}" if collapsed(history[-1:]) else line

    def restore(self):
        """Takes history, and digits for "auto", from the checkpoint, if there is one; `load` takes the rest.

        Tables and GIF are made again where they are lost. A run without an epoch is begun anew. Raises RunError if the
        checkpoint is damaged, lost, or another run's.
        """
        if not self.checkpoint.exists():
            if {path.name for path in self.path.glob("weights/*.pt")} - {"000.pt"}:
                advice = "put it back, or choose another --log-dir"
                raise RunError(f"{self.path} has lost its checkpoint.pt, without which no run goes on: {advice}")
            return
        saved = load_state(self.checkpoint, "model", "optimizer", "settings", "history", "cpu")
        if not saved["history"]:
            return
        self.saved, self.history = saved, saved["history"]
        begun = DEFAULTS | saved["settings"] | {"code": saved.get("code")}
        if self.settings["digits"] == "auto":
            self.settings["digits"] = begun["digits"]
        if differs := difference(begun, self.settings | {"code": self.code}, self.settings):
            advice = "take that back, or choose another --log-dir"
            raise RunError(f"{self.path} is another run's ({differs}): {advice}")
        self.settings["data"] = begun.get("data")
        before, now = self.saved["cpu"], self.facts["cpu"]
        self.facts["cpu"] = before if before.split(", then ")[-1] == now else f"{before}, then {now}"
        if not all((self.path / name).exists() for name in ("metrics.csv", "run.json")):
            self.write_tables(self.history)
        if not (self.path / "progress.gif").exists() and (self.path / "figures").exists():
            self.write_gif(self.history)

    def check_images(self, checksum):
        """Raises RunError if the run was begun on other images; those of an older run are not known."""
        begun = self.settings.get("data")
        if begun not in (None, checksum):
            what = f"its images had the checksum {begun}, and have {checksum}"
            raise RunError(f"{self.path} is another run's ({what}): put those back, or choose another --log-dir")
        self.settings["data"] = checksum

    def note_end(self):
        """Notes in run.json, which else is as it was written, to what end a finished run was asked to go."""
        told = json.loads((self.path / "run.json").read_text())
        epochs = max(self.facts["epochs"], len(self.history))
        asked = {"epochs": epochs, "stop_on_collapse": self.facts["stop_on_collapse"]}
        if told | asked != told:
            write(self.path / "run.json", json.dumps(told | asked, indent=2).encode())

    def load(self, network):
        """Loads the checkpoint that `restore` found, if there is one, into a network."""
        if self.saved:
            for name, part in network._asdict().items():
                if part:
                    part.load_state_dict(self.saved[name])

    def open_events(self):
        """Begins TensorBoard's events, or goes on with them: what they hold of later epochs is not shown any more."""
        self.writer = SummaryWriter(self.path, purge_step=len(self.history) + 1 if self.saved else 0)
        settings = {"title": self.experiment.title} | self.settings
        settings = {name: "none" if value is None else value for name, value in settings.items()}
        outcome = dict.fromkeys(("outcome/best_accuracy", "outcome/failed_in_epoch", "stn/scale"), 0)
        for summary in hparams(settings, outcome):  # add_hparams would make a run of its own
            self.writer.file_writer.add_summary(summary)
        rows = "".join(f"|{key}|{value}|\n" for key, value in (self.settings | self.facts).items())
        self.writer.add_text("run", f"|setting|value|\n|-|-|\n{rows}", len(self.history))

    def add_events(self, history):
        """Adds what an epoch brought, the last of `history`, and its figure if it has one."""
        epoch = len(history)
        figure = self.path / "figures" / f"{epoch:03}.png"
        if figure.exists():
            self.writer.add_image("progress", imageio.imread(figure), epoch, dataformats="HWC")
        summary = summarize(history)
        outcome = {"outcome/best_accuracy": summary["best_accuracy"], "outcome/failed_in_epoch": summary["failed"]}
        row = history[-1] if history else {}
        for tag, value in (row | outcome).items():
            if tag != "epoch" and value is not None:
                self.writer.add_scalar(tag, value, epoch)
        self.writer.flush()

    def write_gif(self, history):
        """Makes the GIF of the figures up to the last epoch of `history`, an endless loop of half a second each."""
        paths = (self.path / "figures" / f"{epoch:03}.png" for epoch in range(len(history) + 1))
        frames = [imageio.imread(path) for path in paths if path.exists()]
        write(self.path / "progress.gif", imageio.imwrite("<bytes>", frames, extension=".gif", duration=500, loop=0))

    def write_tables(self, history):
        """Writes metrics.csv, where what an epoch did not measure is an empty cell, and run.json."""
        names = list(dict.fromkeys(name for row in reversed(history) for name in row)) or ["epoch"]
        rows = [[row.get(name) for name in names] for row in history]
        lines = (",".join("" if cell is None else str(cell) for cell in row) + "\n" for row in [names, *rows])
        write(self.path / "metrics.csv", "".join(lines).encode())
        record = self.settings | self.facts | summarize(history)
        write(self.path / "run.json", json.dumps(record, indent=2).encode())

    def save_epoch(self, history, network, images=None):
        """Writes what an epoch brought, the last of `history`; with images to draw, its figure and weights too."""
        epoch = len(history)
        if images is not None:
            figure = draw_figure(self.experiment, network.model, images, self.headline(history))
            write(self.path / "figures" / f"{epoch:03}.png", imageio.imwrite("<bytes>", figure, extension=".png"))
            write_state(self.path / "weights" / f"{epoch:03}.pt", network.model.state_dict())
            self.write_gif(history)
        self.add_events(history)
        self.write_tables(history)
        states = {name: part.state_dict() for name, part in network._asdict().items() if part}
        states |= {"history": history, "settings": self.settings, "code": self.code, "cpu": self.facts["cpu"]}
        write_state(self.checkpoint, without_numpy(states))
        if epoch == 0:
            load_state(self.checkpoint)  # now, and not once there are epochs to lose
        self.history = history


# ------------------------------------------------------------------------------------------------------------------ run


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the script's docstring as it stands, and the options' defaults."""


def parse_arguments(experiment, description):
    """Parses the command line; ends in one line on stderr and exit code 2 if it is wrong."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog="The same command goes on where it stopped. To start afresh, choose another --log-dir.",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: error: {message} (--help lists all options)\n")
    gpus = ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))] if torch.cuda.is_available() else []
    devices = [*gpus, "cpu", "mps"] if torch.backends.mps.is_available() else [*gpus, "cpu"]
    for each in OPTIONS:
        default = getattr(experiment, each.name)
        parser.add_argument(f"--{each.name}", type=each.type, default=default, **each.metadata["argument"])
    add = parser.add_argument
    add("--device", choices=devices, default=devices[0], help="of those on this machine")
    add("--data-dir", type=os.path.expanduser, default="data", help="folder of MNIST, downloaded into if need be")
    add("--log-dir", type=os.path.expanduser, default=".", help="folder that run folders go into")
    add("--stop-on-collapse", action="store_true", help="end the run once the transformer sees nothing but fill")
    args = parser.parse_args()
    for each in OPTIONS:
        value, within = getattr(args, each.name), each.metadata["within"]
        if within and value not in within:
            parser.error(f"argument --{each.name}: {value} is not from {within[0]} to {within[-1]}")
    return args


def describe_machine(device):
    """Device, CPU, threads and versions. On Linux the CPU with family and model, which tell clouds' apart."""
    try:
        info = dict(re.findall(r"(?m)^(model name|cpu family|model)\s*: (.*\S)", Path("/proc/cpuinfo").read_text()))
        cpu = f"{info['model name']} (family {info['cpu family']}, model {info['model']})"
    except (OSError, KeyError, ValueError):
        cpu = platform.processor() or platform.machine()
    if device.startswith("cuda"):
        gpu = torch.cuda.get_device_name(device)
        device, cpu = f"{device} ({gpu})", f"{gpu}, {cpu}"  # what a run was computed on, which `collect` keeps
    facts = {"device": device, "cpu": cpu, "threads": torch.get_num_threads(), "python": platform.python_version()}
    return facts | {module.__name__: str(module.__version__) for module in (torch, torchvision, np)}


def finished(history, args):
    """Whether a run has come to the end that was asked for."""
    return len(history) >= args.epochs or (args.stop_on_collapse and collapsed(history) is not None)


def run_epochs(folder, network, train_set, test_set, args):
    """Trains from the folder's last epoch, or from the start, to the end that was asked for."""
    experiment = folder.experiment
    folder.open_events()
    if not folder.saved:
        folder.save_epoch([], network, test_set[0])
    say(f"{folder.headline(folder.history)}, of {args.epochs}, on {folder.facts['device']}")
    begun = len(folder.history)
    for epoch in trange(begun + 1, args.epochs + 1, initial=begun, total=args.epochs, unit="epoch", **BAR):
        torch.manual_seed(10_000 * experiment.seed + epoch)  # so that going on needs no random state
        started = time.perf_counter()
        if hasattr(network.optimizer, "train"):  # of schedule-free optimizers, whose averaged weights are tested
            network.optimizer.train()
        row = {"epoch": epoch} | train(experiment, network, *train_set)
        if hasattr(network.optimizer, "eval"):
            network.optimizer.eval()
        row |= test(experiment, network.model, *test_set)
        row["time/epoch_seconds"] = time.perf_counter() - started
        if not math.isfinite(row["train/loss"] + row["test/loss"]):
            raise RunError(f"the loss is not finite in epoch {epoch}; {folder.path} keeps everything up to then")
        if isinstance(network.scheduler, ReduceLROnPlateau):
            network.scheduler.step(row["test/loss"])
        elif network.scheduler and not isinstance(network.scheduler, STEPPED_EACH_BATCH):
            network.scheduler.step()
        history = [*folder.history, row]
        last = finished(history, args)
        folder.save_epoch(history, network, test_set[0] if last or epoch % FIGURE_EVERY == 0 else None)
        say(describe_epoch(row))
        for words, event in (("COLLAPSED", collapsed), ("LOST ITS SOLUTION", lost_solution)):
            if event(history) and not event(history[:-1]):
                say(f"{words} IN EPOCH {event(history)}")
        if last:
            break


def run(folder, args):
    """Trains to the end that was asked for, unless the folder is there already, and says what came of it."""
    folder.facts |= describe_machine(args.device)
    folder.restore()
    if not finished(folder.history, args):
        settings = folder.settings
        *sets, which, checksum = load_images(settings["dataset"], args.data_dir, settings["digits"], settings["limit"])
        settings["digits"] = which
        folder.check_images(checksum)
        for path, text in folder.code.items():
            write(folder.path / "code" / path, text.encode())
        train_set, test_set = ([tensor.to(args.device) for tensor in tensors] for tensors in sets)
        network = make_network(folder.experiment, args.device, train_set[0])
        steps = args.epochs * math.ceil(len(train_set[0]) / BATCH_SIZE)
        if steps > getattr(network.scheduler, "total_steps", math.inf):  # OneCycleLR's
            end = f"its schedule ends after {network.scheduler.total_steps}"
            raise RunError(f"{args.epochs} epochs are {steps} steps, but {end}: ask for fewer, or give it more")
        folder.load(network)
        run_epochs(folder, network, train_set, test_set, args)
    folder.note_end()
    end = {key.replace("_", " "): value for key, value in summarize(folder.history).items() if value is not None}
    say("finished: " + ", ".join(f"{key} {value:.4g}" for key, value in end.items()))
    logs = f"tensorboard --logdir {shlex.quote(args.log_dir)} {TENSORBOARD_OPTIONS}"
    say(f"files: {shlex.quote(str(folder.path))}, curves: {logs}")


# -------------------------------------------------------------------------------------------------- a script's one call


def calling_script():
    """The globals of the script that runs, or that `read_script` reads; it may call by another module. None without."""
    frame = inspect.currentframe()
    while frame := frame.f_back:
        if frame.f_code.co_name == "<module>" and frame.f_globals["__name__"] in ("__main__", "<run_path>"):
            return frame.f_globals


def make_folder(script, experiments, args):
    """Returns the `RunFolder` of the last of a script's experiments, as the command line has it.

    Its name carries what is not the default, such as "_mnist_seed3_limit600". Raises RunError if it has none
    of its own.
    """
    experiment = experiments[-1]
    if not re.fullmatch(r"[\w.+-]+", str(experiment.variant)):
        raise RunError(f"the variant should be a number or a word, and is {experiment.variant!r}")
    if experiment.variant in [other.variant for other in experiments[:-1]]:
        raise RunError(f"two of its runs have the variant {experiment.variant!r}: give each one of its own")
    chosen = replace(experiment, **{each.name: getattr(args, each.name) for each in OPTIONS})
    parts = [experiment.name, experiment.variant]
    if chosen.dataset != experiment.dataset:
        parts.append(chosen.dataset)
    for name in ("seed", "limit"):
        if getattr(chosen, name) != DEFAULTS[name]:
            parts.append(f"{name}{getattr(chosen, name)}")
    path = Path(args.log_dir, "_".join(str(part) for part in parts if part is not None))
    facts = {"title": experiment.title, "epochs": args.epochs, "stop_on_collapse": args.stop_on_collapse}
    facts["data_dir"] = str(Path(args.data_dir).absolute())
    return RunFolder(path, chosen, read_code(script["__file__"]), facts)


def run_or_say_why_not(script, experiments, args):
    """Runs the last of a script's experiments; what a user can mend ends in a line on stderr and an exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    threading.excepthook = lambda _: None  # TensorBoard's writer thread: flush() raises its errors again, here
    try:
        folder = make_folder(script, experiments, args)
        with folder.lock:
            return run(folder, args)
    except KeyboardInterrupt:
        say("stopped: the same command goes on after the last epoch that was shown", sys.stderr)
        sys.exit(130)
    except RunError as error:
        message = str(error)
    except Timeout:
        message = f"another process is running in {folder.path}: wait for it, or, if none is, remove its file .lock"
    except OSError as error:
        message = f"{error}: mend this, and the same command goes on after the last epoch that was shown"
    except RuntimeError as error:
        if args.device == "cpu" or not re.search("(CUDA|HIP|cuDNN) error|no kernel image|out of memory", str(error)):
            raise
        message = f"{args.device} cannot be used: {one_line(error)}: mend this, or use --device cpu"
    say(f"{Path(script['__file__']).name}: error: {message}", sys.stderr)
    if experiments[-1].variant is None:
        sys.exit(1)
    atexit.register(os._exit, 1)  # the script's other runs come first


def run_experiment(**arguments):
    """Runs an experiment as the command line says. The one call of a script, which names the experiment.

    Takes the fields of `Experiment` but for its name. Where a script is read and not run (`read_script`) it is only
    noted. Ends in a line on stderr, and exit code 2 for wrong arguments, 1 for what else a user can mend, 130 where it
    was stopped.
    """
    script = calling_script()
    if not script or "__file__" not in script:
        sys.exit("error: run_experiment has to be called by a script, in a file: its name is the experiment's")
    experiments = script.setdefault("experiments", [])
    experiments.append(Experiment(name=Path(script["__file__"]).stem, **without_numpy(arguments)))
    if script["__name__"] == "__main__":
        run_or_say_why_not(script, experiments, parse_arguments(experiments[-1], script["__doc__"]))
