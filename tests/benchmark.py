"""How long an epoch of training takes, beside the loop that everybody writes, and limited: python tests/benchmark.py

All train the same network on the same canvases, in turn, in one process; ratios are taken round by round, so that they
hold where the machine's speed drifts. The setting of glibc's allocator that `common.py` makes when it is imported
serves all; without it the reference would be slower yet. The limit is on 16 of a batch's 64 images: one that shortens
no step, and one that shortens every step.
"""

import argparse
import platform
import statistics
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
import common  # noqa: E402
from assets.speed import make_loader, make_reference, reference_epoch  # noqa: E402

LIMITS = {"this project": None, "limited, no step shortened": 1e6, "limited, all shortened": 1e-3}  # pixels


def measure(device, count, rounds):
    """Returns the seconds of `rounds` epochs of `count` images, by what was timed: the reference, and `LIMITS`."""
    (images, labels), _, _ = common.load_canvases("cluttered", "data", "embedded", count)
    loader = make_loader(images, labels)
    resident = images.to(device), labels.to(device)
    (experiment,) = common.read_script(ROOT / "classification_experiment_1.py")
    reference = make_reference(experiment, device)
    loops = {"reference loop": partial(reference_epoch, experiment, reference, loader, device)}
    for what, pixels in LIMITS.items():
        limited = replace(experiment, max_motion=pixels)
        loops[what] = partial(common.train, limited, common.make_network(limited, device), *resident)
    seconds = {what: [] for what in loops}
    for _ in range(rounds + 1):
        for what, loop in loops.items():
            start = time.perf_counter()
            loop()
            seconds[what].append(time.perf_counter() - start)
    return {what: times[1:] for what, times in seconds.items()}  # the first round is the warm-up


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="epochs of each, after one of each to warm up")
    parser.add_argument("--images", type=int, default=60000, help="images an epoch")
    args = parser.parse_args()

    lines = [("device", "", "seconds an epoch", "min", "max", "over this project"), ("---",) * 6]
    for device in ("cpu", "cuda")[: 1 + torch.cuda.is_available()]:
        name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
        seconds = measure(device, args.images, args.rounds)
        for what, values in seconds.items():
            ratio = statistics.median(a / b for a, b in zip(values, seconds["this project"], strict=True))
            figures = (statistics.median(values), min(values), max(values), ratio)
            lines.append((name, what, *(f"{value:.2f}" for value in figures)))
    for line in lines:
        print("| " + " | ".join(line) + " |")
    print(
        f"\nmedians of {args.rounds} epochs of {args.images:,} images, in turn; torch {torch.__version__}, "
        f"Python {platform.python_version()}, {platform.system()}, {platform.machine()}"
    )


if __name__ == "__main__":
    main()
