"""Trains networks that are not this project's, with changes to the localization net and without, for elsewhere.csv.

Do a leaky localization net, limited steps and a rate that follows the drift help where others use a transformer?
"neither" is a network as it is; "leaky" has LeakyReLU(0.1) for the localization net's ReLUs; "limited" has
`stn.limit_motion` around the step, at its default of pixels; "both" has both; "steered" has `stn.DriftLR`; "leaky,
steered" too. On plain digits the PyTorch tutorial's net, with Adam at 0.001 and with SGD at 0.01 and momentum 0.9; the
tutorial itself takes SGD without momentum. On coloured digits, 64 x 96, with Adam at 0.001: a localization net with
batch normalization and dropout, one that shares its first layers with the classifier, and torchvision's resnet18; that
with SGD at 0.1 and momentum 0.9 too, as torchvision's own training script has it.

A run that the file has already, with its drift, is not made again. One takes a few minutes on one core, resnet18 with
Adam a quarter of an hour.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice, product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import common
import stn
from assets import ASSETS, Command, positive
from assets.records import format_table, read_table, six_digits

HEIGHT, WIDTH = 64, 96  # of a coloured image, in pixels
SMALLEST, LARGEST = 20, 44  # side of the square that holds a digit's 28 x 28 pixels, in pixels of the image
COUNTS = 12000, 1000  # coloured images to train on and to test on
LIMIT = inspect.signature(stn.limit_motion).parameters["pixels"].default
LINES = {
    "neither": (),
    "leaky": ("leaky",),
    "limited": ("limited",),
    "both": ("leaky", "limited"),
    "steered": ("steered",),
    "leaky, steered": ("leaky", "steered"),
}

# --------------------------------------------------------------------------------------------------------------- images


def make_images(digits, seed):
    """Puts each digit at a random place of an RGB image, in a random size and colour, on a random textured background.

    Args:
        digits: uint8 (N, 28, 28), 0 is black.
        seed: int, of all that is random here.

    Returns:
        The images, uint8 (N, 3, 64, 96): the background's values are at most 127, a digit's colour has at least 153 in
        each channel. And `theta` (N, 2, 3) of the squares that hold the digits, 20 to 44 pixels a side and wholly in
        the image: what a transformer that follows them exactly would predict.
    """
    random = torch.Generator().manual_seed(seed)
    images, thetas, shape = [], [], (HEIGHT, WIDTH)
    for part in torch.from_numpy(digits).split(500):  # all at once would be gigabytes of floats
        count = len(part)
        side = SMALLEST + (LARGEST - SMALLEST) * torch.rand(count, 1, generator=random)
        size = side / torch.tensor([WIDTH, HEIGHT])  # of the square, over the image's
        centre = (2 * torch.rand(count, 2, generator=random) - 1) * (1 - size)
        to_digit = torch.cat([torch.diag_embed(1 / size), -(centre / size)[:, :, None]], 2)
        grid = F.affine_grid(to_digit, [count, 1, *shape], align_corners=False)
        ink = F.grid_sample(part[:, None] / 255, grid, align_corners=False)
        coarse = F.interpolate(torch.rand(count, 3, 8, 12, generator=random), shape, mode="bilinear")
        background = 0.35 * coarse + 0.149 * torch.rand(count, 3, *shape, generator=random)
        colour = 0.6 + 0.4 * torch.rand(count, 3, 1, 1, generator=random)
        images.append((torch.lerp(background, colour.expand_as(background), ink) * 255).round().to(torch.uint8))
        thetas.append(torch.cat([torch.diag_embed(size), centre[:, :, None]], 2))
    return torch.cat(images), torch.cat(thetas)


def load_coloured(data_dir, counts=COUNTS):
    """Returns images uint8 (N, 3, 64, 96) and labels (N,) to train on, and the same to test on."""
    sets = []
    for seed, ((digits, labels), count) in enumerate(zip(common.load_digits(data_dir)[:2], counts, strict=True)):
        index = np.arange(count) % len(digits)
        sets.append((make_images(digits[index], seed)[0], torch.from_numpy(labels[index])))
    return sets


def load_plain(data_dir):
    """Returns images uint8 (N, 1, 28, 28) and labels (N,) to train on, and the same to test on."""
    sets = common.load_digits(data_dir)[:2]
    return [(torch.from_numpy(images)[:, None], torch.from_numpy(labels)) for images, labels in sets]


# ------------------------------------------------------------------------------------------------------------- networks


class Transformed(nn.Module):
    """A classifier behind a transformer, which both may see an image's features in place of the image.

    Args:
        localization: returns the six numbers of `theta`, (N, 6), of features (N, K, h, w).
        classifier: returns the log-probabilities (N, 10) of features (N, K, *out_size).
        out_size: (height, width) of what is sampled.
        backbone: returns the features (N, K, h, w) of images (N, C, H, W); the images themselves by default.
    """

    def __init__(self, localization, classifier, out_size, backbone=None):
        super().__init__()
        self.localization, self.classifier, self.out_size = localization, classifier, out_size
        self.backbone = backbone or nn.Identity()

    def theta(self, images):
        return self.localization(self.backbone(images)).view(-1, 2, 3)

    def forward(self, images):
        features = self.backbone(images)
        theta = self.localization(features).view(-1, 2, 3)
        grid = F.affine_grid(theta, [*features.shape[:2], *self.out_size], align_corners=False)
        return self.classifier(F.grid_sample(features, grid, align_corners=False))


def make_tutorial_net():
    """The PyTorch tutorial's, https://docs.pytorch.org/tutorials/intermediate/spatial_transformer_tutorial.html."""
    convolutions = nn.Conv2d(1, 8, 7), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(8, 10, 5), nn.MaxPool2d(2), nn.ReLU()
    localization = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(90, 32), nn.ReLU(), stn.Regression(32))
    convolutions = nn.Conv2d(1, 10, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(10, 20, 5), nn.Dropout2d()
    linear = nn.Flatten(), nn.Linear(320, 50), nn.ReLU(), nn.Dropout(), nn.Linear(50, 10), nn.LogSoftmax(1)
    return Transformed(localization, nn.Sequential(*convolutions, nn.MaxPool2d(2), nn.ReLU(), *linear), (28, 28))


def normalized_block(channels_in, channels_out, stride):
    return nn.Conv2d(channels_in, channels_out, 3, stride, 1), nn.BatchNorm2d(channels_out), nn.ReLU()


def make_colour_classifier():
    """Classifies RGB images of 32 x 32 pixels."""
    channels = (3, 16), (16, 32), (32, 64)
    layers = sum(((*normalized_block(*pair, 1), nn.MaxPool2d(2)) for pair in channels), ())
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(), nn.Linear(64 * 4 * 4, 10), nn.LogSoftmax(1))


def make_normalized_net():
    """A localization net with batch normalization and dropout, for RGB images of 64 x 96 pixels."""
    blocks = *normalized_block(3, 16, 2), *normalized_block(16, 32, 2), *normalized_block(32, 32, 2)
    linear = nn.Flatten(), nn.Linear(32 * 8 * 12, 64), nn.ReLU(), nn.Dropout(), stn.Regression(64)
    return Transformed(nn.Sequential(*blocks, *linear), make_colour_classifier(), (32, 32))


def make_shared_net():
    """A localization net and a classifier on the features of one backbone, for RGB images of 64 x 96 pixels."""
    backbone = nn.Sequential(*normalized_block(3, 16, 2), *normalized_block(16, 32, 1))
    blocks = *normalized_block(32, 32, 2), *normalized_block(32, 32, 2)
    localization = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(32 * 8 * 12, 64), nn.ReLU(), stn.Regression(64))
    layers = *normalized_block(32, 32, 1), nn.MaxPool2d(2), *normalized_block(32, 64, 1), nn.MaxPool2d(2)
    linear = nn.Flatten(), nn.Dropout(), nn.Linear(64 * 4 * 4, 10), nn.LogSoftmax(1)
    return Transformed(localization, nn.Sequential(*layers, *linear), (16, 16), backbone)


def make_resnet():
    """torchvision's resnet18, not trained before, as localization net for RGB images."""
    localization = torchvision.models.resnet18(weights=None)
    localization.fc = stn.Regression(512)
    return Transformed(localization, make_colour_classifier(), (32, 32))


def make_leaky(network):
    """Puts LeakyReLU(0.1) in the place of every ReLU module."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.LeakyReLU(0.1, inplace=child.inplace))


@dataclass(frozen=True)
class Setting:
    """A network and how it is trained. A test follows every `every` steps; images are (x / 255 - mean) / std.

    `ceiling` is the localization net's learning rate where that is steered.
    """

    network: str
    make_network: Callable
    optimizer: str
    make_optimizer: Callable
    ceiling: float
    images: str
    mean: float
    std: float
    batch_size: int
    steps: int
    every: int


def momentum(lr):
    make_optimizer = partial(torch.optim.SGD, lr=lr, momentum=0.9)
    return {"optimizer": f"SGD {lr}, momentum 0.9", "make_optimizer": make_optimizer, "ceiling": 0.1}


ADAM = {"optimizer": "Adam 0.001", "make_optimizer": partial(torch.optim.Adam, lr=0.001), "ceiling": 0.001}
PLAIN = {"images": "plain", "mean": 0.1307, "std": 0.3081}
COLOURED = {"images": "coloured", "mean": 0.5, "std": 0.5}
SIX_EPOCHS = {"batch_size": 64, "steps": 5628, "every": 938}
TEN_EPOCHS = {"batch_size": 64, "steps": 1880, "every": 188}
SETTINGS = (
    Setting("tutorial", make_tutorial_net, **ADAM, **PLAIN, **SIX_EPOCHS),
    Setting("tutorial", make_tutorial_net, **momentum(0.01), **PLAIN, **SIX_EPOCHS),
    Setting("normalized", make_normalized_net, **ADAM, **COLOURED, **TEN_EPOCHS),
    Setting("shared", make_shared_net, **ADAM, **COLOURED, **TEN_EPOCHS),
    Setting("resnet18", make_resnet, **momentum(0.1), **COLOURED, batch_size=32, steps=200, every=40),
    Setting("resnet18", make_resnet, **ADAM, **COLOURED, batch_size=32, steps=750, every=150),
)
LOADERS = {"plain": load_plain, "coloured": load_coloured}

# ------------------------------------------------------------------------------------------------------------- training


def shuffled(count, batch_size):
    """Yields the indices of batches without end, epoch by epoch, the last of each smaller."""
    while True:
        yield from torch.randperm(count).split(batch_size)


@torch.no_grad()
def test(setting, model, images, labels):
    """Returns the accuracy in percent and the transformer's scale, inside and spread, of all images at once."""
    model.eval()
    outputs = []
    for batch in images.split(500):
        batch = (batch / 255 - setting.mean) / setting.std
        theta = model.theta(batch)
        outputs.append((theta, model(batch).argmax(1)))
    model.train()
    theta, found = map(torch.cat, zip(*outputs, strict=True))
    row = {"accuracy": 100 * (found == labels).sum().item() / len(labels), "scale": stn.scale(theta).item()}
    return row | {"inside": stn.inside(theta, model.out_size).item(), "spread": stn.spread(theta).item()}


def make_schedule(setting, model, followed, steered):
    """Returns an optimizer of a network, and the `stn.DriftLR` of its localization net if that is steered, or None."""
    if not steered:
        return setting.make_optimizer(model.parameters()), None
    others = [*model.backbone.parameters(), *model.classifier.parameters()]
    localization = {"params": model.localization.parameters(), "lr": setting.ceiling}
    optimizer = setting.make_optimizer([localization, {"params": others}])
    return optimizer, stn.DriftLR(optimizer, model.theta, followed)


def train(setting, lines, seed, train_set, test_set):
    """Trains a network with these lines, and returns a row of elsewhere.csv every `setting.every` steps.

    Drift is the median of the windows since the last row, if there were any, of the first 64 training images.
    """
    changes = LINES[lines]
    torch.manual_seed(seed)
    model = setting.make_network()
    if "leaky" in changes:
        make_leaky(model.localization)
    images, labels = train_set
    followed = (images[: common.DRIFT_IMAGES] / 255 - setting.mean) / setting.std
    optimizer, schedule = make_schedule(setting, model, followed, "steered" in changes)
    run = {name: getattr(setting, name) for name in ("network", "images", "optimizer")}
    run |= {"lines": lines, "pixels": LIMIT if "limited" in changes else None, "seed": seed}
    rows, drifts = [], []
    before = stn.predict_in_eval_mode(model.theta, followed)
    batches = islice(shuffled(len(images), setting.batch_size), setting.steps)
    for step, index in enumerate(batches, start=1):
        batch = (images[index] / 255 - setting.mean) / setting.std
        optimizer.zero_grad()
        F.nll_loss(model(batch), labels[index]).backward()
        if "limited" in changes:
            modules = model.backbone, model.localization
            with stn.limit_motion(model.theta, batch[: common.LIMIT_IMAGES], modules, LIMIT):
                optimizer.step()
        else:
            optimizer.step()
        if schedule:
            schedule.step()
        if step % common.DRIFT_EVERY == 0:
            after = stn.predict_in_eval_mode(model.theta, followed)
            drifts.append(stn.drift(before, after).item())
            before = after
        if step % setting.every == 0:
            row = {"drift": float(np.median(drifts)) if drifts else None, "rate": schedule.rate if schedule else None}
            rows.append(run | {"step": step} | test(setting, model, *test_set) | row)
            drifts = []
    return rows


def run_of(row):
    return row["network"], row["optimizer"], row["lines"], row["seed"]


def add_runs(seeds, only, data_dir, path=ASSETS / "elsewhere.csv"):
    """Makes the runs that the file lacks, or has without their drift, and adds each once it has ended."""
    torch.set_num_threads(1)
    sets = {}
    for seed, setting, kind in product(range(seeds), SETTINGS, LINES):
        run = setting.network, setting.optimizer, kind, seed
        there = {run_of(row) for row in read_table(path) if row.get("drift") is not None}
        if only not in (None, setting.network) or run in there:
            continue
        if setting.images not in sets:
            sets[setting.images] = LOADERS[setting.images](data_dir)
        rows = [six_digits(row) for row in train(setting, kind, seed, *sets[setting.images])]
        others = [row for row in read_table(path) if run_of(row) != run]
        common.write(path, format_table([*others, *rows]))
        print(rows[-1], flush=True)


def main():
    command = Command(prog="python -m assets.elsewhere", description=__doc__)
    command.add_argument("--seeds", type=positive, default=2, metavar="N", help="runs of each, with seeds from 0 on")
    command.add_argument("--only", choices=list(dict.fromkeys(s.network for s in SETTINGS)), help="of the networks")
    command.add_argument("--data-dir", type=Path, default=Path("data"), help="folder of MNIST")
    command.set_defaults(function=add_runs)
    command.run()


if __name__ == "__main__":
    main()
