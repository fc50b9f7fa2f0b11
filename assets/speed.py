"""Measures the seconds of an epoch of the document's stable recipe and of this project's, in turn, into speed.csv.

How many minutes of training until 90 and 95 % of the cluttered test digits are right? The table has it: these seconds
times the epochs that the experiments' runs needed, in results.csv. Experiment 3, not normalized with Adam at 0.0001, is
timed in the loop that everybody writes (contiguous tensors, a DataLoader with workers, the loss read in every step);
experiments 7 and 21 in this project's. In turn, so that a machine's drift hits all alike. Testing is not counted. The
file is written anew. On the CPU, with as many threads as torch takes.
"""

import time
import warnings
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

import common
from assets import ASSETS, Command, positive
from assets.rebuild import ROOT
from assets.records import format_table, six_digits

WORKERS = 4  # of the DataLoader, on any machine
REFERENCE, PROJECT = 3, (7, 21)  # numbers of experiments
warnings.filterwarnings("ignore", f"This DataLoader will create {WORKERS} worker processes")


def make_reference(experiment, device="cpu"):
    """The network of an experiment with contiguous weights; weights and random numbers as `common.make_network`'s."""
    network = common.make_network(experiment, device)
    network.model.to(memory_format=torch.contiguous_format)
    return network


def make_loader(images, labels):
    """A DataLoader of uint8 images (N, 1, side, side) as floats in [0, 1] and their labels (N,), shuffled."""
    dataset = TensorDataset(images.float().div(255), labels)
    return DataLoader(dataset, batch_size=common.BATCH_SIZE, shuffle=True, num_workers=WORKERS)


def reference_epoch(experiment, network, loader, device="cpu"):
    """The loop that everybody writes: a DataLoader, eager steps, the loss read in each. Returns the mean loss."""
    network.model.train()
    total = 0.0
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        network.optimizer.zero_grad()
        loss = F.cross_entropy(network.model((images - experiment.mean) / experiment.std), labels)
        loss.backward()
        network.optimizer.step()
        total += loss.item() * len(images)
    return total / len(loader.dataset)


def make_loops(images, labels):
    """Returns {experiment's number: function that trains it for an epoch} on uint8 images (N, 1, 60, 60)."""
    chosen = {n: common.read_script(ROOT / f"classification_experiment_{n}.py")[0] for n in (REFERENCE, *PROJECT)}
    loops = {n: partial(common.train, e, common.make_network(e), images, labels) for n, e in chosen.items()}
    reference = chosen[REFERENCE]
    loops[REFERENCE] = partial(reference_epoch, reference, make_reference(reference), make_loader(images, labels))
    return loops


def write_speed(rounds, data_dir, limit=60000, assets=ASSETS):
    """Trains each for `rounds` epochs, after one that is not timed, in turn, and writes a row an epoch."""
    train_set, _, _ = common.load_canvases("cluttered", data_dir, "auto", limit)
    loops, rows = make_loops(*train_set), []
    for epoch in range(rounds + 1):
        for number, train in loops.items():
            started = time.perf_counter()
            train()
            row = {"experiment": number, "epoch": epoch, "seconds": time.perf_counter() - started}
            print(row, flush=True)
            if epoch:
                rows.append(six_digits(row))
    common.write(assets / "speed.csv", format_table(rows))


def main():
    command = Command(prog="python -m assets.speed", description=__doc__)
    command.add_argument("--rounds", type=positive, default=3, metavar="N", help="epochs of each")
    command.add_argument("--data-dir", type=Path, default=Path("data"), help="folder of MNIST")
    command.set_defaults(function=write_speed)
    command.run()


if __name__ == "__main__":
    main()
