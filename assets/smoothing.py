"""Compares the loss's gradient by a shift of the region with the loss itself, and adds it to smoothing.csv:

    python assets/smoothing.py RUN_FOLDER EPOCH

Why should it help to smooth the images before they are sampled? For the weights that a run saved after EPOCH, each
image's loss, its derivative by a shift of the whole region to the right and the loss's change over one pixel of that
shift, from half a pixel to the left to half a pixel to the right: with the 3 x 3 mean of experiment 15 and without it,
at the same `theta`. Of the first 400 test images with no shift; of the first 4 of them with a loss over 0.1, as others
have hardly a gradient, at shifts of -3 to 3 pixels.
Dropout is off. Pixels are the input's. Rows of the same run and epoch are replaced. Takes seconds.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from collect import KEY
from rebuild import ASSETS, ROOT, load_weights, read_calls, rebuild
from sharpness import add_rows

import common
import stn

IMAGES, DRAWN, LOSS = 400, 4, 0.1  # images, how many of them at all shifts, and over which loss
SHIFTS = np.linspace(-3, 3, 61).round(1).tolist()  # pixels
COLUMNS = (*KEY, "epoch", "image", "smoothed", "shift", "loss", "gradient", "difference")


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
    run, model, _, to_batch = rebuild(folder)
    load_weights(folder, epoch, model)
    model.eval()
    _, (images, labels), _ = common.load_canvases(run["dataset"], "data", run["digits"], run["limit"])
    images, labels = to_batch(images[:IMAGES]), labels[:IMAGES]
    theta = model.stn.theta(images).detach()
    smoothing = read_calls(ROOT / "classification_experiment_15.py")[0]["transformer"]
    samplers = [made(images.shape[-1], out_size=28, fill=run["fill"]) for made in (stn.SpatialTransformer, smoothing)]
    unshifted, _ = shifted_losses(model, samplers[0], images, labels, theta, 0.0)
    drawn = (unshifted > LOSS).nonzero()[:DRAWN, 0]
    rows = []
    for smoothed, sampler in enumerate(samplers):
        for shift in SHIFTS:
            which = drawn if shift else torch.arange(len(images))
            some = model, sampler, images[which], labels[which], theta[which]
            losses, gradients = shifted_losses(*some, shift)
            differences = shifted_losses(*some, shift + 0.5)[0] - shifted_losses(*some, shift - 0.5)[0]
            row = {name: run[name] for name in KEY} | {"epoch": epoch, "smoothed": smoothed, "shift": shift}
            for image, *values in zip(*(x.tolist() for x in (which, losses, gradients, differences)), strict=True):
                rows.append(row | {"image": image} | dict(zip(COLUMNS[-3:], values, strict=True)))
    return rows


def main():
    if len(sys.argv) != 3 or not sys.argv[2].isdigit():
        sys.exit("usage: python assets/smoothing.py RUN_FOLDER EPOCH, of a run that saved weights then")
    torch.set_num_threads(1)
    try:
        add_rows(ASSETS / "smoothing.csv", COLUMNS, compare(Path(sys.argv[1]), int(sys.argv[2])))
    except (common.RunError, OSError) as error:
        sys.exit(f"smoothing.py: error: {error}")


if __name__ == "__main__":
    main()
