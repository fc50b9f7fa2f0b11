"""Makes a run's GIF smaller for these pages, with every Nth of its frames and the last, at half their size:

python assets/thin_gif.py RUN_FOLDER/progress.gif N assets/classification_experiment_N.gif
"""

import io
import sys
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import write  # noqa: E402

COLOURS = 16  # of a GIF: black, white, orange and greys


def thin(source, every, target):
    """Writes every `every`-th frame of the GIF `source`, and its last, to `target`, smaller, as an endless loop."""
    *frames, last = map(Image.fromarray, imageio.imread(source))
    size = last.width // 2, last.height // 2
    frames = [frame.resize(size, Image.Resampling.BOX) for frame in [*frames[::every], last]]
    palette = Image.fromarray(np.vstack(frames)).quantize(COLOURS)  # the same for all, so that a frame is what changes
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=500, loop=0)
    write(target, file.getvalue())


def main():
    if len(sys.argv) != 4 or not sys.argv[2].isdecimal() or int(sys.argv[2]) == 0:
        sys.exit("usage: python assets/thin_gif.py FROM.gif N TO.gif, for every Nth frame")
    source, every, target = sys.argv[1:]
    try:
        thin(Path(source), int(every), Path(target))
    except OSError as error:
        sys.exit(f"thin_gif.py: error: {error}")


if __name__ == "__main__":
    main()
