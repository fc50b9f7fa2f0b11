"""Experiment 36: with input normalization, a localization net that cannot die, and a rate that follows the drift.

Three optimizers at their default rates, the localization net's steered so that its region drifts by 0.035 of its side
in 64 steps: do all of them follow the digits and last, with no rate to find?
"""

from functools import partial

import torch

from common import run_experiment
from stn import SpatialTransformer

OPTIMIZERS = {
    "adam": partial(torch.optim.Adam, lr=0.001),
    "sgd": partial(torch.optim.SGD, lr=0.01),
    "momentum": partial(torch.optim.SGD, lr=0.01, momentum=0.9),
}

for name, epochs in (("adam", 100), ("sgd", 100), ("momentum", 60)):
    run_experiment(
        title=f"normalized, {name}, leaky, drift 0.035",
        mean=0.1307,
        std=0.3081,
        make_optimizer=lambda model, name=name: OPTIMIZERS[name](
            [{"params": model.stn.parameters()}, {"params": model.classifier.parameters()}]
        ),
        epochs=epochs,
        transformer=partial(SpatialTransformer, slope=0.1),
        drift=0.035,
        variant=name,
    )
