"""Experiment 36: with input normalization, a localization net that cannot die, and a rate that follows the drift.

Three optimizers at their default rates. The localization net's is steered so that its region drifts by 0.035 of its
side in 64 steps: do all three follow the digits and last, with no rate to find?
Seen, five seeds each: all do, for all epochs, about as well as at the best rate found by hand or better.
"""

from functools import partial

import torch

from common import run_experiment
from stn import SpatialTransformer

for name, optimizer, ceiling, epochs in (
    ("adam", partial(torch.optim.Adam, lr=0.001), 0.001, 100),
    ("sgd", partial(torch.optim.SGD, lr=0.01), 0.1, 100),
    ("momentum", partial(torch.optim.SGD, lr=0.01, momentum=0.9), 0.1, 60),
):
    run_experiment(
        title=f"normalized, {name}, leaky, drift 0.035",
        mean=0.1307,
        std=0.3081,
        make_optimizer=lambda model, optimizer=optimizer, ceiling=ceiling: optimizer(
            [{"params": model.stn.parameters(), "lr": ceiling}, {"params": model.classifier.parameters()}]
        ),
        epochs=epochs,
        transformer=partial(SpatialTransformer, slope=0.1),
        drift=0.035,
        variant=name,
    )
