"""Experiment 23: with input normalization, SGD 0.01, a localization net whose units cannot die.

Does experiment 1 last if its units cannot die?
Seen, three seeds: no. Steps move the region by two to three pixels, and it leaves the image in epochs 14 to 29.
"""

from functools import partial

import torch

from common import run_experiment
from stn import SpatialTransformer

run_experiment(
    title="normalized, SGD 0.01, leaky",
    mean=0.1307,
    std=0.3081,
    make_optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.01),
    epochs=100,
    transformer=partial(SpatialTransformer, slope=0.1),
)
