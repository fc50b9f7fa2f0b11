"""Keeps what transformers do to eight test digits, for the first figure of the README, in states.npz:

    python assets/make_states.py NAME RUN_FOLDER EPOCH [NAME RUN_FOLDER EPOCH ...]

NAME is what the reader sees beside the row, such as "zooms in". All runs must be on the same images.
"""

import sys
from pathlib import Path

import numpy as np
import torch

ASSETS = Path(__file__).parent
sys.path[:0] = [str(ASSETS.parent), str(ASSETS)]
from rebuild import load_weights, rebuild  # noqa: E402

import common  # noqa: E402

DIGITS = 8


@torch.no_grad()
def look(folder, epoch, images):
    """Returns what a run's transformer does to its test images (N, 1, side, side), uint8, with the weights of an epoch.

    `theta` (N, 2, 3), and what the classifier sees, (N, 28, 28), denormalized to [0, 1]; both as arrays.
    """
    run, model, _, to_batch = rebuild(folder)
    load_weights(folder, epoch, model)
    batch = to_batch(images)
    theta = model.eval().stn.theta(batch)
    seen = model.stn.sample(batch, theta)[:, 0] * run["std"] + run["mean"]
    return theta.numpy(), seen.clamp(0, 1).numpy()


def main():
    names, folders, epochs = sys.argv[1::3], [Path(folder) for folder in sys.argv[2::3]], sys.argv[3::3]
    if not epochs or len(names) != len(epochs) or not all(map(str.isdigit, epochs)):
        sys.exit("usage: python assets/make_states.py NAME RUN_FOLDER EPOCH [NAME RUN_FOLDER EPOCH ...]")
    try:
        run, *_ = rebuild(folders[0])
        _, (images, _), _ = common.load_canvases(run["dataset"], "data", run["digits"], run["limit"])
        images = images[:DIGITS]
        rows = [look(folder, int(epoch), images) for folder, epoch in zip(folders, epochs, strict=True)]
    except (common.RunError, OSError) as error:
        sys.exit(f"make_states.py: error: {error}")
    theta, seen = map(np.stack, zip(*rows, strict=True))
    np.savez_compressed(
        ASSETS / "states.npz",
        names=names,
        images=images[:, 0].numpy(),  # uint8 (8, side, side)
        theta=theta,  # (states, 8, 2, 3)
        seen=np.round(255 * seen).astype(np.uint8),  # (states, 8, 28, 28)
    )


if __name__ == "__main__":
    main()
