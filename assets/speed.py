"""Measures what a step of training costs, of experiments and of the loop that everybody writes, into speed.csv.

    python -m assets.speed 1 7 21

That loop (contiguous tensors, a DataLoader with workers, the loss read in every step) trains the first of the
experiments as well; each experiment is trained as a run of it is, and of a script of several the first. All in one
process, in turn, so that what slows the machine slows all alike; on the CPU with as many threads as torch takes.
Testing is not counted. What the file has of another device stays.
"""

import math
import time
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

import common
from assets import ASSETS, Command, positive
from assets.rebuild import ROOT
from assets.records import format_table, read_table, six_digits

WORKERS = 4  # of the DataLoader, on any machine
EVERYBODYS, THIS_PROJECTS = "everybody's", "this project's"  # loops


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


def make_loops(experiments, data_dir, limit, device):
    """Returns a list of (loop, experiment, function that trains it for an epoch), everybody's loop first."""
    datasets = {experiment.dataset for experiment in experiments}
    sets = {dataset: common.load_images(dataset, data_dir, "auto", limit)[0] for dataset in datasets}
    first = experiments[0]
    network = common.make_network(first, device)
    network.model.to(memory_format=torch.contiguous_format)
    images, labels = sets[first.dataset]
    dataset = TensorDataset(images.float().div(255), labels)
    loader = DataLoader(dataset, batch_size=common.BATCH_SIZE, shuffle=True, num_workers=WORKERS)
    loops = [(EVERYBODYS, first, partial(reference_epoch, first, network, loader, device))]
    for experiment in experiments:
        images, labels = (tensor.to(device) for tensor in sets[experiment.dataset])
        train = partial(common.train, experiment, common.make_network(experiment, device, images), images, labels)
        loops.append((THIS_PROJECTS, experiment, train))
    return loops


def write_speed(experiments, rounds, limit, device, data_dir, assets=ASSETS):
    """Trains each of these numbers for `rounds` epochs, after one that is not timed, in turn; writes a row an epoch."""
    experiments = [common.read_script(ROOT / f"classification_experiment_{number}.py")[0] for number in experiments]
    loops, rows = make_loops(experiments, data_dir, limit, device), []
    for epoch in range(rounds + 1):
        for loop, experiment, train in loops:
            started = time.perf_counter()
            train()
            seconds = time.perf_counter() - started
            number = int(experiment.name.rpartition("_")[2])
            row = {"device": device, "loop": loop, "experiment": number, "title": experiment.title, "epoch": epoch}
            row["seconds_a_step"] = seconds / math.ceil(limit / common.BATCH_SIZE)
            print(row, flush=True)
            if epoch > 0:
                rows.append(six_digits(row))
    path = assets / "speed.csv"
    others = [row for row in read_table(path) if row["device"] != device]
    common.write(path, format_table(others + rows))


def main():
    command = Command(prog="python -m assets.speed", description=__doc__)
    command.add_argument("experiments", type=positive, nargs="*", default=[1, 7, 21], metavar="N", help="their numbers")
    command.add_argument("--rounds", type=positive, default=3, metavar="N", help="epochs of each")
    command.add_argument("--limit", type=positive, default=60000, metavar="N", help="images an epoch")
    command.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    command.add_argument("--data-dir", type=Path, default=Path("data"), help="folder of MNIST")
    command.set_defaults(function=write_speed)
    command.run()


if __name__ == "__main__":
    main()
