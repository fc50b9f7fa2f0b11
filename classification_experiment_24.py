"""Experiment 24: with input normalization, SGD 0.01, and two lines.

Experiment 1 with a localization net whose units cannot die, and no step that moves the region by more than a tenth of
a pixel: does it last?
Seen, five seeds: all do, for 100 epochs, and follow the digits.
"""

from functools import partial

import torch

from common import run_experiment
from stn import SpatialTransformer

run_experiment(
    title="normalized, SGD 0.01, leaky, limited to 0.1 px",
    mean=0.1307,
    std=0.3081,
    make_optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.01),
    epochs=100,
    transformer=partial(SpatialTransformer, slope=0.1),
    max_motion=0.1,
)
