"""Experiment 37: with input normalization, a localization net that cannot die, its rate steered to seven drifts.

The dose, 0.01 to 0.15 of the region's side in 64 steps, with two optimizers, 20 epochs each: does the drift alone
decide, with the same numbers for both?
Seen, two seeds: best at 0.035; up to 0.05 all last. At 0.07 one with momentum drops to 41 % in its last epoch, at 0.1
one of two fails with Adam, at 0.15 both with momentum.
"""

from functools import partial

import torch

from common import run_experiment
from stn import SpatialTransformer

for name, optimizer, ceiling in (
    ("adam", partial(torch.optim.Adam, lr=0.001), 0.001),
    ("momentum", partial(torch.optim.SGD, lr=0.01, momentum=0.9), 0.1),
):
    for drift in (0.01, 0.02, 0.035, 0.05, 0.07, 0.1, 0.15):
        run_experiment(
            title=f"normalized, {name}, leaky, drift {drift}",
            mean=0.1307,
            std=0.3081,
            make_optimizer=lambda model, optimizer=optimizer, ceiling=ceiling: optimizer(
                [{"params": model.stn.parameters(), "lr": ceiling}, {"params": model.classifier.parameters()}]
            ),
            epochs=20,
            transformer=partial(SpatialTransformer, slope=0.1),
            drift=drift,
            variant=f"{name}_{drift}",
        )
