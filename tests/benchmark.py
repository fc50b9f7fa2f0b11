"""How long an epoch of training takes, beside the loop that everybody writes: python tests/benchmark.py

Both train the same network on the same canvases, in turn, in one process; the ratio is taken pair by pair, so that it
holds where the machine's speed drifts. The setting of glibc's allocator that `common.py` makes when it is imported
serves both loops; without it the reference would be slower yet.
"""

import argparse
import platform
import statistics
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parents[1]))
import common  # noqa: E402
from stn import STNClassifier  # noqa: E402

MEAN, STD = 0.1307, 0.3081
warnings.filterwarnings(
    "ignore", "This DataLoader will create 4 worker processes"
)  # the reference has 4 on any machine


def reference_epoch(model, optimizer, loader, device):
    """The reference: contiguous tensors, a DataLoader with workers, eager steps, the loss read in every one of them."""
    model.train()
    total = 0.0
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        loss = F.cross_entropy(model((images - MEAN) / STD), labels)
        loss.backward()
        optimizer.step()
        total += loss.item() * len(images)
    return total / len(loader.dataset)


def measure(device, count, pairs):
    """Returns the seconds of `pairs` epochs of `count` images of the reference, and of this project's as many."""
    (images, labels), _, _ = common.load_canvases("cluttered", "data", "embedded", count)
    to_batch = partial(common.normalize, peak=1, mean=MEAN, std=STD)

    torch.manual_seed(0)
    reference, project = STNClassifier().to(device), STNClassifier().to(device, memory_format=torch.channels_last)
    project.load_state_dict(reference.state_dict())
    dataset = TensorDataset(images.float(), labels)
    loader = DataLoader(dataset, batch_size=common.BATCH_SIZE, shuffle=True, num_workers=4)
    resident = images.to(device), labels.to(device)

    for model in (reference, project):
        model.eval()  # no dropout
    for index in torch.arange(640, device=device).split(common.BATCH_SIZE):
        batch, target = resident[0][index], resident[1][index]
        losses = [
            F.cross_entropy(m(x), target) for m, x in ((reference, (batch - MEAN) / STD), (project, to_batch(batch)))
        ]
        torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)

    def sgd(model):
        return torch.optim.SGD(model.parameters(), lr=0.01)

    loops = (
        partial(reference_epoch, reference, sgd(reference), loader, device),
        partial(common.train, project, sgd(project), *resident, to_batch),
    )
    seconds = [], []
    for _ in range(pairs + 1):
        for loop, times in zip(loops, seconds, strict=True):
            start = time.perf_counter()
            loop()
            times.append(time.perf_counter() - start)
    return [times[1:] for times in seconds]  # the first pair is the warm-up


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="epochs of each loop, after one of each to warm up")
    parser.add_argument("--images", type=int, default=60000, help="images an epoch")
    parser.add_argument("--markdown", action="store_true", help="print the table for the README")
    args = parser.parse_args()

    lines = [("device", "seconds an epoch", "median", "min", "max")]
    for device in ("cpu", "cuda")[: 1 + torch.cuda.is_available()]:
        name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
        reference, project = measure(device, args.images, args.pairs)
        ratios = [a / b for a, b in zip(reference, project, strict=True)]
        for what, values in (("reference loop", reference), ("this project", project), ("ratio", ratios)):
            figures = (statistics.median(values), min(values), max(values))
            lines.append((name, what, *(f"{value:.2f}" for value in figures)))
    if args.markdown:
        lines.insert(1, ("---",) * 5)
    for line in lines:
        print("| " + " | ".join(line) + " |" if args.markdown else "".join(cell.ljust(22) for cell in line))
    print(
        f"\n{args.pairs} pairs of epochs of {args.images:,} images, in turn; torch {torch.__version__}, "
        f"Python {platform.python_version()}, {platform.system()}, {platform.machine()}"
    )


if __name__ == "__main__":
    main()
