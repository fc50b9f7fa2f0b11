"""Makes the pictures and GIFs that need a run's weights or frames."""

import io
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import torch
from PIL import Image

import common
from assets import ASSETS, Command, positive
from assets.rebuild import SavedRun

DIGITS = 8
COLOURS = 16  # of a GIF: black, white, orange and greys


@torch.no_grad()
def look(saved, epoch, images):
    """Returns what a run's transformer does to its test images (N, 1, side, side), uint8, with the weights of an epoch.

    `theta` (N, 2, 3), and what the classifier sees, (N, 1, 28, 28), denormalized to [0, 1].
    """
    saved.load(epoch)
    batch = saved.experiment.normalize(images)
    theta = saved.model.eval().stn.theta(batch)
    seen = saved.experiment.denormalize(saved.model.stn.sample(batch, theta))
    return theta, seen


def make_states(rows, assets=ASSETS):
    """Keeps what transformers do to eight test digits, for states.png, in states.npz.

    `rows` are triples of a name, which the reader sees beside the row, a run's folder and an epoch, all texts. All runs
    must be on the same images.
    """
    runs = [SavedRun(Path(folder)) for _, folder, _ in rows]
    images = runs[0].test_set[0][:DIGITS]
    looks = [look(saved, epoch, images) for saved, (_, _, epoch) in zip(runs, rows, strict=True)]
    np.savez_compressed(
        assets / "states.npz",
        names=[name for name, _, _ in rows],
        images=images[:, 0].numpy(),  # uint8 (8, side, side)
        theta=torch.stack([theta for theta, _ in looks]).numpy(),  # (states, 8, 2, 3)
        seen=torch.stack([(255 * seen[:, 0]).round().byte() for _, seen in looks]).numpy(),  # (states, 8, 28, 28)
    )


# ------------------------------------------------------------------------------------------------------------------ GIF


def thin_gif(source, every, target):
    """Writes every `every`-th frame of the GIF `source`, and its last, to `target`, half as large, as a loop."""
    *frames, last = map(Image.fromarray, imageio.imread(source))
    size = last.width // 2, last.height // 2
    frames = [frame.resize(size, Image.Resampling.BOX) for frame in [*frames[::every], last]]
    palette = Image.fromarray(np.vstack(frames)).quantize(COLOURS)  # the same for all, so that a frame is what changes
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=500, loop=0)
    common.write(target, file.getvalue())


def main():
    command = Command(prog="python -m assets.pictures", description=__doc__)
    pictures = command.add_subparsers(required=True, metavar="PICTURE")
    states = pictures.add_parser("states", help="states.npz, what transformers do to eight test digits, for states.png")
    states.add_argument(
        "--row", dest="rows", action="append", nargs=3, required=True, metavar=("NAME", "RUN_FOLDER", "EPOCH")
    )
    states.set_defaults(function=make_states)
    gif = pictures.add_parser("gif", help="a GIF at half its size, with every Nth of its frames and the last")
    gif.add_argument("source", type=Path, metavar="FROM.gif")
    gif.add_argument("every", type=positive, metavar="N")
    gif.add_argument("target", type=Path, metavar="TO.gif")
    gif.set_defaults(function=thin_gif)
    command.run()


if __name__ == "__main__":
    main()
