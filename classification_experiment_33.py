"""Experiment 33: with input normalization, SGD 0.01, a penalty on theta's distance from the identity.

A cure that many ask for, at two weights, 60 epochs each: does experiment 1 last if theta is held back?
Seen, two seeds each: no. The localization nets die, and all four end with one map.
"""

from functools import partial

import torch

from common import run_experiment


def squared_distance(theta, weight):
    return weight * (theta - torch.eye(2, 3, device=theta.device)).square().sum(dim=(1, 2)).mean()


for weight in (0.01, 0.1):
    run_experiment(
        title=f"normalized, SGD 0.01, penalty {weight} on theta",
        mean=0.1307,
        std=0.3081,
        make_optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.01),
        epochs=60,
        penalty=partial(squared_distance, weight=weight),
        variant=weight,
    )
