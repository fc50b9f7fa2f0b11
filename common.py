"""What the experiments share, in the order in which data flow: digits, canvases, batches, figure, history, files, run.

A script calls `run_experiment` and nothing else.
"""

import argparse
import copy
import ctypes
import io
import json
import math
import os
import platform
import signal
import socket
import sys
import threading
import time
from functools import partial
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

import imageio.v3 as imageio
import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from filelock import FileLock, Timeout
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from matplotlib.transforms import Bbox, TransformedBbox
from numpy.lib.stride_tricks import sliding_window_view
from torch.utils.tensorboard import SummaryWriter
from torchvision.datasets.utils import check_integrity
from tqdm import tqdm

import stn

BATCH_SIZE = 64
FIGURE_EVERY = 5  # epochs
CANVAS, PATCH, PATCHES = 60, 6, 8  # side of a canvas and of a clutter patch in pixels, patches on a canvas
TRAIN_SEED, TEST_SEED = 0, 1  # of the canvases: they are the same in every run
EMBEDDED = Path(__file__).parent / "assets" / "mnist_5k.npz"


class RunError(Exception):
    """A failure that the user can mend; its message is one line that says how."""


# --------------------------------------------------------------------------------------------------------------- digits

UNPACKED = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


class MNIST(torchvision.datasets.MNIST):
    """torchvision's MNIST verifies the archives that it downloads; this one verifies what was unpacked as well."""

    def _check_exists(self):
        return all(check_integrity(Path(self.raw_folder, name), md5) for name, md5 in UNPACKED.items())


def fetch_mnist(data_dir):
    """Returns MNIST's training and test set, downloaded into `data_dir` if they are not there.

    Raises ConnectionError if they are neither there nor to be had, RunError if what is there is damaged and no whole
    file is to be had instead, OSError if `data_dir` cannot be written.
    """
    try:
        return MNIST(data_dir, train=True), MNIST(data_dir, train=False)  # writes nothing: the folder may be read-only
    except RuntimeError:
        pass  # not there, or not whole
    Path(data_dir).mkdir(parents=True, exist_ok=True)
    with FileLock(Path(data_dir, ".lock")):  # two first runs side by side: one fetches, the other waits
        raw = Path(data_dir, "MNIST", "raw")
        files = [*UNPACKED.items(), *MNIST.resources]
        damaged = [raw / name for name, md5 in files if (raw / name).exists() and not check_integrity(raw / name, md5)]
        socket.setdefaulttimeout(10)
        try:
            return MNIST(data_dir, train=True, download=True), MNIST(data_dir, train=False)
        except (RuntimeError, URLError, HTTPException, TimeoutError, ConnectionError) as error:
            if damaged:
                raise RunError(
                    f"{damaged[0]} is damaged (its MD5 is wrong) and no whole one can be downloaded: "
                    "put a whole one there, or remove it, or choose another --data-dir"
                ) from error
            raise ConnectionError(" ".join(str(error).split())) from error


def load_digits(data_dir, digits="auto"):
    """Loads MNIST's digits from `data_dir`, or else those that come with this project.

    Args:
        data_dir: folder that torchvision keeps MNIST in, downloaded into if need be.
        digits: "full" for MNIST's 60,000 and 10,000 digits, "embedded" for 4,000 and 1,000 of them, the same number of
            each class, without a network; "auto" for the first where it can be had, else for the second.

    Returns:
        (images, labels) of the training set, the same of the test set, and which digits these are, "full" or
        "embedded". Images are uint8 (N, 28, 28), 0 is black, labels int64 (N,), 0 to 9.

    Raises:
        RunError: files are there but damaged, or `digits` is "full" and MNIST cannot be downloaded.
        OSError: `data_dir` cannot be read or written.
    """
    if digits != "embedded":
        try:
            return *((mnist.data.numpy(), mnist.targets.numpy()) for mnist in fetch_mnist(data_dir)), "full"
        except ConnectionError as error:
            if digits == "full":
                raise RunError(
                    f"MNIST is not in {data_dir} and cannot be downloaded: copy its files to {data_dir}/MNIST/raw, "
                    f"or use --digits embedded ({error})"
                ) from error
            line = f"!!! No MNIST in {data_dir}, and no network: going on with the 5,000 EMBEDDED digits !!!"
            print("!" * len(line), line, "!" * len(line), sep="\n", file=sys.stderr)
    with np.load(EMBEDDED) as file:
        images, labels = file["images"], file["labels"].astype(np.int64)
    return (images[:4000], labels[:4000]), (images[4000:], labels[4000:]), "embedded"


# ------------------------------------------------------------------------------------------------------------- canvases


def clutter(images, patch_source, seed):
    """Puts each digit at a random place of a 60 x 60 canvas, over 8 random 6 x 6 patches of random other digits.

    The recipe of the published runs: a later patch overwrites an earlier one, the digit lies over all of them, and
    every pixel that is not 0 becomes 1. The first N canvases do not depend on how many are made.

    Args:
        images: uint8 (N, 28, 28), the digits.
        patch_source: uint8 (M, 28, 28), the digits that patches are cut from.
        seed: int, of all that is random here.

    Returns:
        uint8 (N, 60, 60), values 0 and 1.
    """
    count, side = len(images), images.shape[-1]
    highs = [CANVAS - side] * 2 + [len(patch_source), *[side - PATCH] * 2, *[CANVAS - PATCH] * 2] * PATCHES
    # drawn row by row, that is canvas by canvas
    randint = (np.random.default_rng(seed).random((count, len(highs))) * highs).astype(np.int64)
    place, patches = randint[:, :2].T, randint[:, 2:].reshape(count, PATCHES, 5)

    canvases, rows = np.zeros((count, CANVAS, CANVAS), np.uint8), np.arange(count)
    windows = sliding_window_view(patch_source, (PATCH, PATCH), axis=(1, 2))
    places = sliding_window_view(canvases, (PATCH, PATCH), axis=(1, 2), writeable=True)
    for source, row, column, top, left in patches.transpose(1, 2, 0):
        places[rows, top, left] = windows[source, row, column]
    places = sliding_window_view(canvases, (side, side), axis=(1, 2), writeable=True)
    places[rows, *place] = np.maximum(places[rows, *place], images)
    return np.minimum(canvases, 1, out=canvases)


def load_canvases(dataset, data_dir, digits, limit):
    """Returns (images, labels) to train on, the same to test on, and which digits these are.

    `limit` and a sixth of it, images uint8 (N, 1, side, side); where the digits are fewer they are used again.
    """
    *sets, which = load_digits(data_dir, digits)
    patch_source = np.concatenate([images for images, _ in sets])
    tensors = []
    for (images, labels), count, seed in zip(sets, (limit, limit // 6), (TRAIN_SEED, TEST_SEED), strict=True):
        index = np.arange(count) % len(images)
        images = clutter(images[index], patch_source, seed) if dataset == "cluttered" else images[index]
        tensors.append((torch.from_numpy(images)[:, None], torch.from_numpy(labels[index])))
    return *tensors, which


# ---------------------------------------------------------------------------------------------- batches, train and test

if platform.libc_ver()[0] == "glibc":  # else it returns a step's tensors to the system, and faults them in in the next
    for parameter in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        ctypes.CDLL(None).mallopt(parameter, 2**30)


def normalize(images, peak, mean, std):
    """Turns uint8 (N, 1, side, side), values 0 to `peak`, into the float32 batch that the network sees."""
    return images.float().div_(peak).sub_(mean).div_(std)


def train(model, optimizer, images, labels, to_batch, title):
    """Trains for one epoch and returns the mean loss over its images."""
    model.train()
    total = torch.zeros((), device=images.device)
    order = torch.randperm(len(images)).to(images.device)
    for index in tqdm(order.split(BATCH_SIZE), title, unit="batch", leave=False, disable=None):
        loss = F.cross_entropy(model(to_batch(images[index])), labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(index)  # no .item() here: it would wait for the device in every step
    return total.item() / len(images)


@torch.no_grad()
def test(model, images, labels, to_batch):
    """Returns loss, accuracy in percent, and the transformer's scale and inside, each the mean over all images."""
    model.eval()
    total = torch.zeros(4, device=images.device)
    for batch, target in zip(images.split(BATCH_SIZE), labels.split(BATCH_SIZE), strict=True):
        batch = to_batch(batch)
        theta = model.stn.theta(batch)
        logits = model.classifier(model.stn.sample(batch, theta))
        loss, correct = F.cross_entropy(logits, target, reduction="sum"), (logits.argmax(1) == target).sum()
        total += torch.stack([loss, correct, stn.scale(theta) * len(batch), stn.inside(theta) * len(batch)])
    loss, correct, scale, inside = (value / len(images) for value in total.tolist())
    return {"test/loss": loss, "test/accuracy": 100 * correct, "stn/scale": scale, "stn/inside": inside}


# --------------------------------------------------------------------------------------------------------------- figure

TILE, MARGIN, HEAD = 60, 9, 58  # pixels
PANEL = 8 * TILE + 7  # 8 x 8 tiles with a line of one pixel between them


def outlines(theta, size):
    """Corners (N, 4, 2) of the sampled regions: `theta` (N, 2, 3) applied to (+-1, +-1).

    In pixels (x, y) of the square input images, whose outer edges lie at 0 and `size`.
    """
    corners = torch.tensor([[-1.0, -1, 1], [1, -1, 1], [1, 1, 1], [-1, 1, 1]], device=theta.device)
    return (corners @ theta.transpose(1, 2) + 1) * size / 2


@torch.no_grad()
def draw_figure(model, images, to_batch, mean, std, title):
    """Draws 64 images, where the transformer looks in them, and what the classifier sees, as uint8 (H, W, 3).

    Tiles are enlarged by whole factors and outlines are not antialiased, which keeps the GIF small.
    """
    model.eval()
    batch = to_batch(images)
    theta = model.stn.theta(batch)
    pair = batch, model.stn.sample(batch, theta)
    inputs, transformed = ((x * std + mean).clamp(0, 1)[:, 0].cpu().numpy() for x in pair)
    polygons = outlines(theta, images.shape[-1]).cpu().numpy()

    width, height = 4 * MARGIN + 3 * PANEL, HEAD + PANEL + MARGIN
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.text(MARGIN, 6, title, va="top", fontsize=13)
    panels = {"Dataset images": inputs, "Learned transformations": inputs, "Transformed images": transformed}
    for panel, (name, tiles) in enumerate(panels.items()):
        left, zoom = MARGIN + panel * (PANEL + MARGIN), TILE // tiles.shape[-1]
        side = zoom * tiles.shape[-1]
        mosaic = np.full((PANEL, PANEL), 0.35)
        axes.text(left, HEAD - 5, name, va="bottom", fontsize=11)
        for i, tile in enumerate(tiles):
            y, x = (np.array(divmod(i, 8)) * (TILE + 1) + (TILE - side) // 2).tolist()
            mosaic[y : y + side, x : x + side] = tile.repeat(zoom, 0).repeat(zoom, 1)
            if name == "Learned transformations":
                corner = np.array([left + x, HEAD + y])
                outline = Polygon(corner + zoom * polygons[i], fill=False, edgecolor="#ff8000", linewidth=1.5)
                axes.add_patch(outline).set_antialiased(False)
                outline.set_clip_box(TransformedBbox(Bbox([corner, corner + side]), axes.transData))
        extent = (left, left + PANEL, HEAD + PANEL, HEAD)
        axes.imshow(mosaic, "gray", vmin=0, vmax=1, extent=extent, aspect="auto", interpolation="nearest")
    axes.set(xlim=(0, width), ylim=(height, 0))  # pixels of the figure
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3] // 17 * 17  # 16 levels


# ------------------------------------------------------------------------------------------------------ a run's history

# a row of a history, and of metrics.csv, is an epoch and these
TAGS = ("train/loss", "test/loss", "test/accuracy", "stn/scale", "stn/inside", "time/epoch_seconds")


def collapsed(history):
    """First epoch with `inside` under 0.05: the transformer sees next to nothing. None if there is none.

    That is fewer than 40 of an image's 28 x 28 sampling points, on average over the test set. Not 0, because a
    transformer that keeps a corner of a few images in view learns as little. In assets/results.csv any bound from
    0.03 to 0.08 gives the same epochs. A run can come back.
    """
    return next((row["epoch"] for row in history if row["stn/inside"] < 0.05), None)


def lost_solution(history):
    """First epoch of five in a row with a train loss above 1.5 times its minimum until then. None if there are none."""
    lowest, above = math.inf, 0
    for row in history:
        above = above + 1 if row["train/loss"] > 1.5 * lowest else 0
        if above == 5:
            return row["epoch"] - 4
        lowest = min(lowest, row["train/loss"])
    return None


def summarize(history):
    """Best (picked on the test set) and last accuracy in percent, and the epochs of the two events."""
    best = max(history, key=lambda row: row["test/accuracy"], default={"epoch": None, "test/accuracy": None})
    return {
        "epoch": len(history),
        "best_accuracy": best["test/accuracy"],
        "best_epoch": best["epoch"],
        "last_accuracy": history[-1]["test/accuracy"] if history else None,
        "collapsed": collapsed(history),
        "lost_solution": lost_solution(history),
    }


# ---------------------------------------------------------------------------------------------------------------- files


def write(path, data):
    """Replaces a file as a whole: whatever happens meanwhile, what is found there later is the old file or the new."""
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


def write_gif(path, frames):
    """Writes frames, uint8 (H, W, 3), as an endless loop of half a second each."""
    write(path, imageio.imwrite("<bytes>", frames, extension=".gif", duration=500, loop=0))


def read_gif(path):
    """Returns the frames of a GIF; none if it is lost or torn."""
    try:
        return list(imageio.imiter(path))
    except (OSError, ValueError, EOFError, SyntaxError):  # as imageio and Pillow put it
        return []


def save_epoch(folder, writer, settings, history, model, optimizer):
    """Writes what an epoch brought. The checkpoint comes last: an epoch that did not get so far is done again."""
    for tag in TAGS if history else ():
        writer.add_scalar(tag, history[-1][tag], len(history))
    writer.flush()
    table = [("epoch", *TAGS), *(row.values() for row in history)]
    write(folder / "metrics.csv", "".join(",".join(map(str, line)) + "\n" for line in table).encode())
    write(folder / "run.json", json.dumps(settings | summarize(history), indent=2).encode())
    states = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    write_state(folder / "checkpoint.pt", {"settings": settings, "epoch": len(history), "history": history, **states})


def load_state(path):
    """Loads what `write_state` wrote, tensors to the CPU. Raises RunError if it is damaged."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the damage leads to
        raise RunError(f"{path} is damaged: put a whole one there, or remove the folder to start afresh") from error


def load_checkpoint(path, settings, model, optimizer):
    """Loads a checkpoint into model and optimizer, and returns the digits it was begun with and its history.

    Raises RunError if it is damaged, or another run's than `settings` says, where digits "auto" means any.
    """
    checkpoint = load_state(path)
    try:
        begun, history = checkpoint["settings"], checkpoint["history"]
        wanted = settings | {"digits": begun["digits"]} if settings["digits"] == "auto" else settings
        differs = [f"{key} is {begun[key]}, not {value}" for key, value in wanted.items() if begun[key] != value]
        if not differs:
            model.load_state_dict(checkpoint["model"])
            optimizer.load_state_dict(checkpoint["optimizer"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RunError(f"{path} is of another format: put the right one there, or remove the folder") from error
    if differs:
        raise RunError(f"{path.parent} is another run's ({'; '.join(differs)}): remove it, or choose another --log-dir")
    return begun["digits"], history


# ------------------------------------------------------------------------------------------------------------------ run


def parse_arguments(name, epochs):
    """Parses the command line; ends in one line on stderr and exit code 2 if it is wrong."""
    parser = argparse.ArgumentParser(
        prog=f"{name}.py",
        description="Runs the experiment, or goes on with it where it stopped. To start afresh, remove its folder.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: error: {message} (--help lists all options)\n")
    gpus = ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))] if torch.cuda.is_available() else []
    devices = [*gpus, "cpu", *["mps"] * torch.backends.mps.is_available()]
    option = parser.add_argument
    option("--epochs", type=int, default=epochs, help="train up to this epoch")
    option("--seed", type=int, default=0, help="of initialization, shuffling and dropout")
    option("--device", choices=devices, default=devices[0], help="of those on this machine")
    option("--data-dir", default="data", help="folder of MNIST's files, downloaded into if need be")
    option("--digits", choices=["auto", "full", "embedded"], default="auto", help="MNIST, or the 5,000 in assets")
    option("--dataset", choices=["cluttered", "mnist"], default="cluttered", help="60 x 60, or plain digits, 28 x 28")
    option("--limit", type=int, default=60000, help="train on the first N images, test on N/6")
    option("--log-dir", default=".", help="folder that run folders go into")
    option("--stop-on-collapse", action="store_true", help="end the run once the transformer sees nothing but fill")
    args = parser.parse_args()
    for name, low, high in (("epochs", 1, 9999), ("seed", 0, 99999), ("limit", 384, 60000)):
        if not low <= getattr(args, name) <= high:
            parser.error(f"argument --{name}: {getattr(args, name)} is not from {low} to {high}")
    return args


def run(args, folder, settings, make_optimizer, history):
    """Trains from the checkpoint in `folder`, or from the start, to the end; `history` grows by a row an epoch."""
    torch.manual_seed(10_000 * args.seed)
    model = stn.STNClassifier(in_size=60 if args.dataset == "cluttered" else 28, fill=settings["fill"])
    model.to(args.device, memory_format=torch.channels_last)
    optimizer = make_optimizer(model.parameters())
    numbers = {k: v for k, v in optimizer.defaults.items() if v and type(v) in (int, float, tuple)}
    settings["optimizer"] = f"{type(optimizer).__name__}({', '.join(f'{k}={v}' for k, v in numbers.items())})"

    def finished(history):
        return len(history) >= args.epochs or (args.stop_on_collapse and collapsed(history) is not None)

    begun = (folder / "checkpoint.pt").exists()
    if begun:
        settings["digits"], history[:] = load_checkpoint(folder / "checkpoint.pt", settings, model, optimizer)
    saved = [path for path in sorted(folder.glob("weights_*.pt")) if begun and int(path.stem[8:]) <= len(history)]
    frames = read_gif(folder / "progress.gif")
    if begun and finished(history) and len(frames) == len(saved):
        return

    *sets, settings["digits"] = load_canvases(args.dataset, args.data_dir, settings["digits"], args.limit)
    train_set, test_set = ([tensor.to(args.device) for tensor in tensors] for tensors in sets)
    mean, std = settings["mean"], settings["std"]
    to_batch = partial(normalize, peak=1 if args.dataset == "cluttered" else 255, mean=mean, std=std)

    def draw(model, history):
        title = f"{folder.name}{' (embedded digits)' if settings['digits'] == 'embedded' else ''}, epoch {len(history)}"
        title += f", accuracy {history[-1]['test/accuracy']:.2f} %" if history else ", before training"
        title += f", COLLAPSED in epoch {collapsed(history)}" if collapsed(history[-1:]) else ""
        return draw_figure(model, test_set[0][:64], to_batch, mean, std, title)

    if len(frames) != len(saved):  # the GIF is lost, torn, or ahead of the checkpoint
        frames, then = [], copy.deepcopy(model)
        for path in saved:
            then.load_state_dict(load_state(path))
            frames.append(draw(then, history[: int(path.stem[8:])]))
        if frames:
            write_gif(folder / "progress.gif", frames)
        if begun and finished(history):
            return

    settings |= {"device": args.device, "threads": torch.get_num_threads(), "python": platform.python_version()}
    settings |= {module.__name__: str(module.__version__) for module in (torch, torchvision, np)}
    writer = SummaryWriter(folder, purge_step=len(history) + 1 if begun else 0)
    rows = "".join(f"|{key}|{value}|\n" for key, value in settings.items())
    writer.add_text("run", f"|setting|value|\n|-|-|\n{rows}", len(history))

    def show(history):
        frames.append(draw(model, history))
        writer.add_image("progress", frames[-1], len(history), dataformats="HWC")
        write_state(folder / f"weights_{len(history):03}.pt", model.state_dict())
        write_gif(folder / "progress.gif", frames)

    print(f"{folder}: {settings['digits']} digits, {args.device}, epoch {len(history)} of {args.epochs}", flush=True)
    if not begun:
        show(history)
        save_epoch(folder, writer, settings, history, model, optimizer)
    while not finished(history):
        epoch, started = len(history) + 1, time.perf_counter()
        torch.manual_seed(10_000 * args.seed + epoch)  # so that going on needs no random state
        row = {"epoch": epoch, "train/loss": train(model, optimizer, *train_set, to_batch, f"epoch {epoch}")}
        row |= test(model, *test_set, to_batch)
        if not math.isfinite(row["train/loss"] + row["test/loss"]):
            raise RunError(f"the loss is not finite in epoch {epoch}; {folder} keeps everything up to the epoch before")
        row["time/epoch_seconds"] = time.perf_counter() - started
        rows = [*history, row]
        if epoch % FIGURE_EVERY == 0 or finished(rows):
            show(rows)
        save_epoch(folder, writer, settings, rows, model, optimizer)
        history.append(row)
        print(f"epoch {epoch:3}/{args.epochs}", *(f" {tag} {row[tag]:.4g}" for tag in TAGS), flush=True)
        for event in (collapsed, lost_solution):
            if event(history) and not event(history[:-1]):
                print(f"{event.__name__.upper()} IN EPOCH {event(history)}".replace("_", " ITS "), flush=True)
    writer.close()


def run_experiment(name, mean, std, make_optimizer, epochs, fill=0.0):
    """Runs an experiment as the command line says. The one call of an experiment's script.

    Args:
        name: of the experiment, and of the folder that it writes.
        mean, std: the network sees (image - mean) / std of images in [0, 1].
        make_optimizer: called with the network's parameters, returns their torch.optim.Optimizer.
        epochs: to train for, unless --epochs says otherwise.
        fill: value that the transformer samples outside the normalized image.

    Raises SystemExit after one line on stderr: with code 2 for wrong arguments, 1 for what else a user can mend, 130
    for SIGINT and 143 for SIGTERM.
    """
    args, history = parse_arguments(name, epochs), []
    settings = {"experiment": name, "mean": mean, "std": std, "fill": fill, "batch_size": BATCH_SIZE}
    settings |= {key: getattr(args, key) for key in ("dataset", "digits", "limit", "seed")}
    folder = name + "_mnist" * (args.dataset == "mnist")
    folder += (f"_seed{args.seed}" if args.seed else "") + (f"_limit{args.limit}" if args.limit != 60000 else "")
    folder = Path(args.log_dir, folder)

    def interrupt(signum, _):
        raise KeyboardInterrupt(signum)

    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)
    threading.excepthook = lambda _: None  # TensorBoard's writer thread: flush() raises its errors again, here
    try:
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder} is a file where the run's folder goes: remove it, or choose another --log-dir")
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock", timeout=0):
            run(args, folder, settings, make_optimizer, history)
    except KeyboardInterrupt as stop:
        epoch = len(history)
        print(f"stopped in epoch {epoch + 1}: the same command goes on after epoch {epoch}", file=sys.stderr)
        sys.exit(128 + stop.args[0])
    except Timeout:
        sys.exit(f"{name}.py: error: another process is running in {folder}: wait for it, or choose another --log-dir")
    except RunError as error:
        sys.exit(f"{name}.py: error: {error}")
    except OSError as error:
        sys.exit(f"{name}.py: error: {error}: mend this, and the same command goes on after epoch {len(history)}")
    end = {key: value for key, value in summarize(history).items() if value is not None}
    print("finished:", ", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in end.items()))
    print(f"files: {folder}, curves: tensorboard --logdir {args.log_dir} --port 7010")
