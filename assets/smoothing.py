"""Compares the loss's gradient by a shift of the region with the loss itself, and adds it to smoothing.csv.

Why should it help to smooth the images before they are sampled? For the weights that a run saved after EPOCH, each
image's loss, its derivative by a shift of the whole region to the right and the loss's change over one pixel of that
shift, from half a pixel to the left to half a pixel to the right: with the 3 x 3 mean of experiment 15 and without it,
at the same `theta`. Of the first 400 test images with no shift; of the first 4 of them with a loss over 0.1, as others
have hardly a gradient, at shifts of -3 to 3 pixels.
Dropout is off. Pixels are the input's. Rows of the same run and epoch are replaced. Takes seconds.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import common
import stn
from assets import ASSETS, Command
from assets.rebuild import ROOT, SavedRun
from assets.records import add_rows, key_columns

IMAGES, DRAWN, LOSS = 400, 4, 0.1  # images, how many of them at all shifts, and over which loss
SHIFTS = np.linspace(-3, 3, 61).round(1).tolist()  # pixels


def shifted_losses(model, sampler, images, labels, theta, shift):
    """Each image's loss (N,) and its derivative (N,) by a shift of the region to the right, at `shift` pixels.

    `theta` (N, 2, 3) is sampled with `sampler`, an `stn.SpatialTransformer`; a unit of it is half the image's side.
    """
    pixels = theta.new_full([len(images)], shift).requires_grad_()
    right = theta.new_tensor([[0, 0, 2 / images.shape[-1]], [0, 0, 0]])
    logits = model.classifier(sampler.sample(images, theta + pixels[:, None, None] * right))
    losses = F.cross_entropy(logits, labels, reduction="none")
    (gradient,) = torch.autograd.grad(losses.sum(), pixels)
    return losses.detach(), gradient


def compare(folder, epoch):
    """Returns the rows of smoothing.csv of the run in a folder at an epoch.

    Raises RunError if there is no run, or it has no weights of that epoch.
    """
    saved = SavedRun(folder)
    saved.load(epoch)
    model = saved.model.eval()
    _, (images, labels) = saved.canvases()
    images, labels = saved.experiment.normalize(images[:IMAGES]), labels[:IMAGES]
    theta = model.stn.theta(images).detach()
    smoothed = common.read_script(ROOT / "classification_experiment_15.py")[0].transformer
    kinds = (stn.SpatialTransformer, smoothed)
    samplers = [kind(images.shape[-1], out_size=28, fill=saved.run["fill"]) for kind in kinds]
    unshifted, _ = shifted_losses(model, samplers[0], images, labels, theta, 0.0)
    drawn = (unshifted > LOSS).nonzero()[:DRAWN, 0]
    key, rows = key_columns(saved.run, epoch), []
    for is_smoothed, sampler in enumerate(samplers):
        for shift in SHIFTS:
            index = drawn if shift else torch.arange(len(images))
            inputs = model, sampler, images[index], labels[index], theta[index]
            losses, gradients = shifted_losses(*inputs, shift)
            differences = shifted_losses(*inputs, shift + 0.5)[0] - shifted_losses(*inputs, shift - 0.5)[0]
            for image, *values in zip(*(x.tolist() for x in (index, losses, gradients, differences)), strict=True):
                row = {"image": image, "smoothed": is_smoothed, "shift": shift}
                rows.append(key | row | dict(zip(("loss", "gradient", "difference"), values, strict=True)))
    return rows


def add_smoothing(folder, epoch, assets=ASSETS):
    torch.set_num_threads(1)
    add_rows(assets / "smoothing.csv", compare(folder, epoch))


def main():
    command = Command(prog="python -m assets.smoothing", description=__doc__)
    command.add_argument("folder", type=Path, metavar="RUN_FOLDER")
    command.add_argument("epoch", type=int, metavar="EPOCH", help="one that the run saved weights after")
    command.set_defaults(function=add_smoothing)
    command.run()


if __name__ == "__main__":
    main()
