"""Experiment 8: with input normalization, SGD at a tenth of the learning rate.

Experiment 1 fails with SGD at 0.01: is it SGD, or its learning rate?
Seen: all three seeds learn slowly, zoom in and last, with a dip in accuracy now and then.
"""

import torch

from common import run_experiment

run_experiment(
    title="normalized, SGD 0.001",
    mean=0.1307,
    std=0.3081,
    make_optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.001),
    epochs=150,
)
