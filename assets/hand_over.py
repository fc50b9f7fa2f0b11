"""Hands a run's weights over to plain SGD and adds what becomes of them to hand_over.csv.

At which learning rate does SGD keep a solution that it did not find itself? The weights that the run saved after EPOCH
are trained on for 400 steps with the localization net at several rates and the classifier at 0.001, and with the
localization net frozen and the classifier at 0.01; each once for every shuffle of the training images. The run's own
optimizer, its state and its clipping play no part. The figures are `common.test`'s, of the first 2,000 test images:
of all 10,000 they would take longer than the training. Rows of the same run and epoch are replaced. A run on 60 x 60
takes about ten minutes with three shuffles.
"""

from pathlib import Path

import torch
import torch.nn.functional as F

from assets import ASSETS, Command, positive
from assets.rebuild import SavedRun
from assets.records import add_rows, key_columns
from common import BATCH_SIZE

NET_RATES = (0.00003, 0.0001, 0.0003, 0.00055, 0.001, 0.0018, 0.003, 0.0055, 0.01)
RATES = (*((rate, 0.001) for rate in NET_RATES), (0, 0.01))  # of the localization net and of the classifier
STEPS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 400)  # after which it is tested
TESTED = 2000  # images
TAGS = ("stn/scale", "stn/inside", "stn/spread", "test/accuracy", "test/loss")


def descend(model, rates, images, labels, normalize):
    """Trains without end with SGD, localization net and classifier at a rate each, and yields after each step.

    The batches are `common.train`'s: shuffled with torch's random numbers, the last of an epoch smaller.
    """
    parts = zip((model.stn, model.classifier), rates, strict=True)
    optimizer = torch.optim.SGD([{"params": part.parameters(), "lr": rate} for part, rate in parts])
    while True:
        for index in torch.randperm(len(images)).split(BATCH_SIZE):
            model.train()  # testing turned it off
            loss = F.cross_entropy(model(normalize(images[index])), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield


def add_hand_over(folder, epoch, shuffles, assets=ASSETS):
    """Adds the rows of the run in a folder at an epoch: `STEPS` of `RATES` of each shuffle.

    Raises RunError if there is no run, or it has no weights of that epoch.
    """
    torch.set_num_threads(1)
    saved = SavedRun(folder)
    train_set, (images, labels) = saved.canvases()
    key, rows = key_columns(saved.run, epoch), []
    for shuffle in range(shuffles):
        for rate, classifier_rate in RATES:
            saved.load(epoch)
            torch.manual_seed(shuffle)  # the same batches and dropout at each rate
            steps = descend(saved.model, (rate, classifier_rate), *train_set, saved.experiment.normalize)
            for step in range(STEPS[-1] + 1):
                if step:
                    next(steps)
                if step in STEPS:
                    row = {"rate": rate, "classifier_rate": classifier_rate, "shuffle": shuffle, "step": step}
                    figures = saved.test(images[:TESTED], labels[:TESTED])
                    rows.append(key | row | {tag: figures[tag] for tag in TAGS})
            print(f"{folder.name}, epoch {epoch}, {rows[-1]}", flush=True)
    add_rows(assets / "hand_over.csv", rows)


def main():
    command = Command(prog="python -m assets.hand_over", description=__doc__)
    command.add_argument("folder", type=Path, metavar="RUN_FOLDER")
    command.add_argument("epoch", type=int, metavar="EPOCH", help="one that the run saved weights after")
    command.add_argument("--shuffles", type=positive, default=3, metavar="N")
    command.set_defaults(function=add_hand_over)
    command.run()


if __name__ == "__main__":
    main()
