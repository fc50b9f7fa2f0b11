"""Makes comparison.gif, two runs side by side as they train, on the same eight test digits:

    python assets/make_comparison.py RUN_FOLDER RUN_FOLDER

Above, where each transformer looks; below, what the classifier sees, and the accuracy so far. A frame for every weights
file that both runs have.
"""

import sys
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

ASSETS = Path(__file__).parent
sys.path[:0] = [str(ASSETS.parent), str(ASSETS)]
from make_states import DIGITS, look  # noqa: E402
from rebuild import rebuild  # noqa: E402

import common  # noqa: E402

TILE, MARGIN, HEAD, SEEN, PLOT = common.TILE, 14, 44, 56, 110  # pixels
PANEL = 4 * TILE
WIDTH, HEIGHT = 3 * MARGIN + 2 * PANEL, HEAD + 2 * TILE + SEEN + PLOT + 3 * MARGIN


def draw_run(figure, axes, left, images, theta, seen, run, epoch):
    """Draws one run at an epoch, its upper left corner at (left, 0), in pixels of the figure."""
    history = run["history"][:epoch]
    accuracy = f"{history[-1]['test/accuracy']:.1f} %" if history else "before training"
    axes.text(left, 6, run["title"], va="top", fontsize=12)
    axes.text(left, 25, f"epoch {epoch}, accuracy {accuracy}" if history else accuracy, va="top", fontsize=11)
    side, zoom = images.shape[-1], TILE // 2 // images.shape[-1]
    mosaic, pad = np.full((2 * TILE + SEEN, PANEL), 0.2), (TILE - zoom * side) // 2
    outlines = common.outlines(torch.from_numpy(theta), side).numpy()
    for i, image in enumerate(images):
        y, x = (np.array(divmod(i, 4)) * TILE).tolist()
        mosaic[y + pad : y + pad + zoom * side, x + pad : x + pad + zoom * side] = image.repeat(zoom, 0).repeat(zoom, 1)
        mosaic[2 * TILE :, i * TILE // 2 + 2 : i * TILE // 2 + 2 + SEEN] = seen[i].repeat(2, 0).repeat(2, 1)
        corner = np.array([left + x, HEAD + y])
        common.add_outline(axes, corner + pad + zoom * outlines[i], corner)
    extent = (left, left + PANEL, HEAD + 2 * TILE + SEEN, HEAD)
    axes.imshow(mosaic, "gray", vmin=0, vmax=1, extent=extent, aspect="auto", interpolation="nearest")
    plot = figure.add_axes(((left + 44) / WIDTH, 26 / HEIGHT, (PANEL - 52) / WIDTH, PLOT / HEIGHT))
    plot.plot([row["epoch"] for row in history], [row["test/accuracy"] for row in history], color="#0072B2")
    plot.set(xlim=(0, run["epochs"]), ylim=(0, 100))
    plot.set_ylabel("accuracy (%)", fontsize=9)
    plot.tick_params(labelsize=9)


def draw_frame(images, looks, runs, epoch):
    """Draws both runs at an epoch, as uint8 (H, W, 3)."""
    figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for i, (run, (theta, seen)) in enumerate(zip(runs, looks, strict=True)):
        draw_run(figure, axes, MARGIN + i * (PANEL + MARGIN), images, theta, seen, run, epoch)
    axes.set(xlim=(0, WIDTH), ylim=(HEIGHT, 0))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3] // 17 * 17  # 16 levels, as in the runs' own GIFs


def main():
    if len(sys.argv) != 3:
        sys.exit("usage: python assets/make_comparison.py RUN_FOLDER RUN_FOLDER")
    folders = [Path(folder) for folder in sys.argv[1:]]
    try:
        runs = [rebuild(folder)[0] for folder in folders]
        _, (images, _), _ = common.load_canvases(runs[0]["dataset"], "data", runs[0]["digits"], runs[0]["limit"])
        images = images[:DIGITS]
        both = set.intersection(*({int(path.stem) for path in (f / "weights").glob("*.pt")} for f in folders))
        frames = []
        for epoch in sorted(both):
            looks = [look(folder, epoch, images) for folder in folders]
            frames.append(draw_frame(images[:, 0].numpy(), looks, runs, epoch))
    except (common.RunError, OSError) as error:
        sys.exit(f"make_comparison.py: error: {error}")
    gif = imageio.imwrite("<bytes>", frames, extension=".gif", duration=500, loop=0)
    common.write(ASSETS / "comparison.gif", gif)


if __name__ == "__main__":
    main()
