"""Experiment 3: without input normalization, Adam instead of SGD.

Was it SGD's large learning rate that made experiment 2 collapse?
Seen: all seeds zoom in, to about two thirds of the image or less, and last.
"""

import torch

from common import run_experiment

run_experiment(
    title="not normalized, Adam 0.0001",
    mean=0,
    std=1,
    make_optimizer=lambda model: torch.optim.Adam(model.parameters(), lr=0.0001),
    epochs=150,
)
