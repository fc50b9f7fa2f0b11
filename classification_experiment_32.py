"""Experiment 32: with input normalization, Adam 0.001, two lines, and a cosine schedule to 0.

Experiment 21 with a learning rate that falls: how good does this network get?
Seen, three seeds: 97.1 %, half a point more than without the schedule, as good as 150 epochs of 7.
"""

from functools import partial

import torch

from common import run_experiment
from stn import SpatialTransformer

run_experiment(
    title="normalized, Adam 0.001, leaky, limited to 0.1 px, cosine",
    mean=0.1307,
    std=0.3081,
    make_optimizer=lambda model: torch.optim.Adam(model.parameters(), lr=0.001),
    epochs=100,
    transformer=partial(SpatialTransformer, slope=0.1),
    max_motion=0.1,
    make_scheduler=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100),
)
