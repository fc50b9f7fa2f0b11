"""Experiment 14: with input normalization, the gradient's norm clipped at 25.

In the first replays of failures an unusually large gradient came before: is it the few large steps?
Seen: both seeds collapse and come back; one collapses again, the other ends with one map for all images.
"""

import torch

from common import run_experiment

run_experiment(
    title="normalized, SGD 0.01, clipped at 25",
    mean=0.1307,
    std=0.3081,
    make_optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.01),
    epochs=100,
    max_grad_norm=25,
)
