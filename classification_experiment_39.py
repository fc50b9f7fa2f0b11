"""Experiment 39: with input normalization, canvases enlarged to 120 x 120, and a rate that follows the drift.

SGD and Adam, leaky, 40 epochs each, to be run with --limit 12000 as experiment 30: is it the same number for another
size of image?
Seen, two seeds: all last, with 68 to 87 % after 30 epochs, where the best rate by hand (30, 0.003) has 32 to 51. With
SGD they follow the digits, with Adam in part.
"""

from functools import partial

import torch

from common import run_experiment
from stn import SpatialTransformer

for name, optimizer, ceiling in (
    ("adam", partial(torch.optim.Adam, lr=0.001), 0.001),
    ("sgd", partial(torch.optim.SGD, lr=0.01), 0.1),
):
    run_experiment(
        title=f"normalized, {name}, leaky, drift 0.035",
        mean=0.1307,
        std=0.3081,
        make_optimizer=lambda model, optimizer=optimizer, ceiling=ceiling: optimizer(
            [{"params": model.stn.parameters(), "lr": ceiling}, {"params": model.classifier.parameters()}]
        ),
        epochs=40,
        transformer=partial(SpatialTransformer, slope=0.1),
        drift=0.035,
        dataset="enlarged",
        variant=name,
    )
