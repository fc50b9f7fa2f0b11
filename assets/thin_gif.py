"""Makes a run's GIF smaller for these pages, with every Nth of its frames and the last:

python assets/thin_gif.py RUN_FOLDER/progress.gif N assets/classification_experiment_N.gif
"""

import sys
from pathlib import Path

import imageio.v3 as imageio
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import write  # noqa: E402


def thin(source, every, target):
    """Writes every `every`-th frame of the GIF `source`, and its last, to `target`, as an endless loop."""
    *frames, last = imageio.imread(source)
    first, *others = [*frames[::every], last]
    options = {"extension": ".gif", "duration": 500, "loop": 0, "save_all": True}
    write(target, imageio.imwrite("<bytes>", first, **options, append_images=[*map(Image.fromarray, others)]))


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
