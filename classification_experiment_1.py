"""Experiment 1: with input normalization.

The transformer pads with 0, but black is -0.42 in a normalized image: does the frame make training collapse?
Seen: all seeds fail before epoch 50, and most hardly zoom in before that.
"""

import torch

from common import run_experiment

run_experiment(
    title="normalized, SGD 0.01",
    mean=0.1307,
    std=0.3081,
    make_optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.01),
    epochs=100,
)
