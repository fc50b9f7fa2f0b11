"""Experiment 19: with input normalization, Adam 0.001, a localization net whose units cannot die.

Experiment 9 has one map for all images: is it dead ReLUs?
Seen, three seeds: with a leak none has one map; two follow the digits, until a step throws them off the image.
"""

from functools import partial

import torch

from common import run_experiment
from stn import SpatialTransformer

run_experiment(
    title="normalized, Adam 0.001, leaky",
    mean=0.1307,
    std=0.3081,
    make_optimizer=lambda model: torch.optim.Adam(model.parameters(), lr=0.001),
    epochs=60,
    transformer=partial(SpatialTransformer, slope=0.1),
)
