"""Experiment 7: with input normalization, Adam instead of SGD.

Experiment 1 with the optimizer of experiment 3: is it the normalization, or SGD?
Seen: all seeds zoom in and last, as without normalization.
"""

import torch

from common import run_experiment

run_experiment(
    title="normalized, Adam 0.0001",
    mean=0.1307,
    std=0.3081,
    make_optimizer=lambda model: torch.optim.Adam(model.parameters(), lr=0.0001),
    epochs=150,
)
