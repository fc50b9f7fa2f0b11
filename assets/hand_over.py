"""Hands a run's weights over to plain SGD and adds what becomes of them to hand_over.csv, for make_figures.py:

    python assets/hand_over.py RUN_FOLDER EPOCH [--shuffles 3]

At which learning rate does SGD keep a solution that it did not find itself? The weights that the run saved after EPOCH
are trained on for 400 steps with the localization net at several rates and the classifier at 0.001, and with the
localization net frozen and the classifier at 0.01; each once for every shuffle of the training images. The run's own
optimizer, its state and its clipping play no part. The figures are `common.test`'s, of the first 2,000 test images:
of all 10,000 they would take longer than the training. Rows of the same run and epoch are replaced. A run on 60 x 60
takes about ten minutes with three shuffles.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from collect import KEY
from rebuild import ASSETS, load_weights, rebuild
from sharpness import add_rows

import common

RATES = (0.00003, 0.0001, 0.0003, 0.00055, 0.001, 0.0018, 0.003, 0.0055, 0.01)  # of the localization net
RATES = (*((rate, 0.001) for rate in RATES), (0, 0.01))  # and of the classifier
STEPS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 400)  # after which it is tested
TESTED = 2000  # images
FIGURES = ("stn/scale", "stn/inside", "stn/spread", "test/accuracy", "test/loss")
COLUMNS = (*KEY, "epoch", "rate", "classifier_rate", "shuffle", "step", *FIGURES)


def descend(model, rates, images, labels, to_batch):
    """Trains without end with SGD, localization net and classifier at a rate each, and yields after each step.

    The batches are `common.train`'s: shuffled with torch's random numbers, the last of an epoch smaller.
    """
    parts = zip((model.stn, model.classifier), rates, strict=True)
    optimizer = torch.optim.SGD([{"params": part.parameters(), "lr": rate} for part, rate in parts])
    while True:
        for index in torch.randperm(len(images)).split(common.BATCH_SIZE):
            model.train()  # testing turned it off
            loss = F.cross_entropy(model(to_batch(images[index])), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield


def hand_over(folder, epoch, shuffles):
    """Returns the rows of hand_over.csv of the run in a folder at an epoch: `STEPS` of `RATES` of each shuffle.

    Raises RunError if there is no run, or it has no weights of that epoch.
    """
    run, model, _, to_batch = rebuild(folder)
    load_weights(folder, epoch, model)
    train_set, test_set, _ = common.load_canvases(run["dataset"], "data", run["digits"], run["limit"])
    test_set = [tensor[:TESTED] for tensor in test_set]
    rows = []
    for shuffle in range(shuffles):
        for rates in RATES:
            load_weights(folder, epoch, model)
            torch.manual_seed(shuffle)  # the same batches and dropout at each rate
            steps = descend(model, rates, *train_set, to_batch)
            for step in range(STEPS[-1] + 1):
                if step:
                    next(steps)
                if step in STEPS:
                    figures = common.test(model, *test_set, to_batch)
                    row = {name: run[name] for name in KEY} | {"epoch": epoch, "shuffle": shuffle, "step": step}
                    row |= {"rate": rates[0], "classifier_rate": rates[1]}
                    rows.append(row | {tag: figures[tag] for tag in FIGURES})
            print(f"{folder.name}, epoch {epoch}, rates {rates}, shuffle {shuffle}: {figures}", flush=True)
    return rows


def main():
    match sys.argv[1:]:
        case [folder, epoch]:
            shuffles = "3"
        case [folder, epoch, "--shuffles", shuffles]:
            pass
        case _:
            folder = epoch = shuffles = ""
    if not epoch.isdecimal() or not shuffles.isdecimal() or int(shuffles) == 0:
        sys.exit("usage: python assets/hand_over.py RUN_FOLDER EPOCH [--shuffles 3], of a run that saved weights then")
    torch.set_num_threads(1)
    try:
        add_rows(ASSETS / "hand_over.csv", COLUMNS, hand_over(Path(folder), int(epoch), int(shuffles)))
    except (common.RunError, OSError) as error:
        sys.exit(f"hand_over.py: error: {error}")


if __name__ == "__main__":
    main()
