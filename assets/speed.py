"""Trains the document's stable recipe and two of this project's, epoch by epoch in turn, into speed.csv.

How many minutes of training until 90 and 95 % of the cluttered test digits are right? Experiment 3, not normalized with
Adam at 0.0001, in the loop that everybody writes (contiguous tensors, a DataLoader with workers, the loss read in every
step); experiments 7 and 21 in this project's. In turn, so that a machine's drift hits all alike. Each ends once it has
95 %, or its time is up. Testing is not counted. The file is written anew. On the CPU, with as many threads as torch
takes.
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
GOAL = 95  # percent
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
    """Returns [(what, experiment, network, function that trains it for an epoch)] on uint8 images (N, 1, 60, 60)."""

    def read(number):
        return common.read_script(ROOT / f"classification_experiment_{number}.py")[0]

    experiment, loader = read(REFERENCE), make_loader(images, labels)
    network, what = make_reference(experiment), f"{REFERENCE}: {experiment.title}, the loop that everybody writes"
    loops = [(what, experiment, network, partial(reference_epoch, experiment, network, loader))]
    for experiment in map(read, PROJECT):
        network = common.make_network(experiment)
        what = f"{experiment.name.rpartition('_')[2]}: {experiment.title}"
        loops.append((what, experiment, network, partial(common.train, experiment, network, images, labels)))
    return loops


def take_turns(loops, test_set, minutes):
    """Trains all in turn, and yields after each epoch: a row of speed.csv.

    A loop whose accuracy has reached 95 %, or whose training has taken `minutes`, has no further turn.
    """
    seconds, epoch = dict.fromkeys((what for what, *_ in loops), 0.0), 0
    while loops:
        epoch += 1
        for what, experiment, network, train in list(loops):
            torch.manual_seed(10_000 * experiment.seed + epoch)
            started = time.perf_counter()
            train()
            seconds[what] += time.perf_counter() - started
            accuracy = common.test(experiment, network.model, *test_set)["test/accuracy"]
            if accuracy >= GOAL or seconds[what] >= 60 * minutes:
                loops = [loop for loop in loops if loop[0] != what]
            yield {"what": what, "epoch": epoch, "seconds": seconds[what], "accuracy": accuracy}


def write_speed(minutes, data_dir, limit=60000, assets=ASSETS):
    train_set, test_set, _ = common.load_canvases("cluttered", data_dir, "auto", limit)
    rows = []
    for row in take_turns(make_loops(*train_set), test_set, minutes):
        print(row, flush=True)
        rows.append(six_digits(row))
        common.write(assets / "speed.csv", format_table(list(row), rows))


def main():
    command = Command(prog="python -m assets.speed", description=__doc__)
    command.add_argument("--minutes", type=positive, default=15, metavar="M", help="of training, each at most")
    command.add_argument("--data-dir", type=Path, default=Path("data"), help="folder of MNIST")
    command.set_defaults(function=write_speed)
    command.run()


if __name__ == "__main__":
    main()
