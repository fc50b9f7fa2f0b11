"""Experiment 4: with input normalization, padded with black.

Experiment 1 without the frame, and nothing else changed: is it the frame?
Seen: all seeds fail, as with the frame.
"""

import torch

from common import run_experiment

run_experiment(
    title="normalized, filled with black, SGD 0.01",
    mean=0.1307,
    std=0.3081,
    fill=-0.1307 / 0.3081,
    make_optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.01),
    epochs=100,
)
