"""Makes the pictures and GIFs that need a run's weights or frames."""

import io
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

import common
from assets import ASSETS, Command, positive
from assets.rebuild import SavedRun

DIGITS = 8
TILE, PANEL, MARGIN, HEAD, PLOT = common.TILE, common.PANEL, 14, 44, 110  # pixels
SHOWN = 2 * (TILE + 1) + TILE // 2  # two rows of tiles, and one of what is returned
WIDTH, HEIGHT = 3 * MARGIN + 2 * PANEL, HEAD + SHOWN + PLOT + 3 * MARGIN
COLOURS = 16  # of a GIF: black, white, orange and greys


def first_digits(saved):
    """The first test images of a run, uint8 (8, 1, side, side)."""
    _, (images, _) = saved.canvases()
    return images[:DIGITS]


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
    images = first_digits(runs[0])
    looks = [look(saved, epoch, images) for saved, (_, _, epoch) in zip(runs, rows, strict=True)]
    np.savez_compressed(
        assets / "states.npz",
        names=[name for name, _, _ in rows],
        images=images[:, 0].numpy(),  # uint8 (8, side, side)
        theta=torch.stack([theta for theta, _ in looks]).numpy(),  # (states, 8, 2, 3)
        seen=torch.stack([(255 * seen[:, 0]).round().byte() for _, seen in looks]).numpy(),  # (states, 8, 28, 28)
    )


# ----------------------------------------------------------------------------------------------------------- comparison


def draw_run(figure, axes, left, images, saved, epoch):
    """Draws one run at an epoch, its upper left corner at (left, 0), in pixels of the figure.

    Images are uint8 (8, 1, side, side).
    """
    run, (theta, seen) = saved.run, look(saved, epoch, images)
    history = run["history"][:epoch]
    line = f"epoch {epoch}, accuracy {history[-1]['test/accuracy']:.1f} %" if history else "before training"
    axes.text(left, 6, run["title"], va="top", fontsize=12)
    axes.text(left, 25, line, va="top", fontsize=11)
    panel = Image.new("RGB", (PANEL, SHOWN), "#595959")
    for i in range(DIGITS):
        panel.paste(common.draw_tile(images[i], theta[i]), (i % 4 * (TILE + 1), i // 4 * (TILE + 1)))
        panel.paste(common.draw_tile(seen[i], side=TILE // 2), (i * TILE // 2, 2 * (TILE + 1)))
    extent = (left, left + PANEL, HEAD + SHOWN, HEAD)
    axes.imshow(panel, extent=extent, aspect="auto", interpolation="nearest")
    plot = figure.add_axes(((left + 44) / WIDTH, 26 / HEIGHT, (PANEL - 52) / WIDTH, PLOT / HEIGHT))
    plot.plot([row["epoch"] for row in history], [row["test/accuracy"] for row in history], color="#0072B2")
    plot.set(xlim=(0, run["epochs"]), ylim=(0, 100))
    plot.set_ylabel("accuracy (%)", fontsize=9)
    plot.tick_params(labelsize=9)


def draw_frame(images, runs, epoch):
    """Draws both runs at an epoch, as uint8 (H, W, 3): above, where each transformer looks; below, what it returns."""
    figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for i, saved in enumerate(runs):
        draw_run(figure, axes, MARGIN + i * (PANEL + MARGIN), images, saved, epoch)
    axes.set(xlim=(0, WIDTH), ylim=(HEIGHT, 0))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3] // 17 * 17  # 16 levels, as in the runs' own GIFs


def make_comparison(folders, assets=ASSETS):
    """Makes comparison.gif of two runs, a frame for every weights file that both have."""
    runs = [SavedRun(folder) for folder in folders]
    images = first_digits(runs[0])
    epochs = sorted(set.intersection(*(set(saved.saved_epochs()) for saved in runs)))
    if not epochs:
        raise common.RunError(f"{folders[0]} and {folders[1]} have no weights of the same epoch")
    frames = [draw_frame(images, runs, epoch) for epoch in epochs]
    gif = imageio.imwrite("<bytes>", frames, extension=".gif", duration=500, loop=0)
    common.write(assets / "comparison.gif", gif)


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
    comparison = pictures.add_parser("comparison", help="comparison.gif, two runs side by side as they train")
    comparison.add_argument("folders", type=Path, nargs=2, metavar="RUN_FOLDER")
    comparison.set_defaults(function=make_comparison)
    gif = pictures.add_parser("gif", help="a GIF at half its size, with every Nth of its frames and the last")
    gif.add_argument("source", type=Path, metavar="FROM.gif")
    gif.add_argument("every", type=positive, metavar="N")
    gif.add_argument("target", type=Path, metavar="TO.gif")
    gif.set_defaults(function=thin_gif)
    command.run()


if __name__ == "__main__":
    main()
