"""Experiment 10: with input normalization, the localization net learns ten times slower.

A cure: does experiment 1 last if the transformer alone has a smaller learning rate?
Seen: all seeds zoom in and last, better by several points.
"""

import torch

from common import run_experiment

run_experiment(
    title="normalized, SGD 0.01, localization net 0.001",
    mean=0.1307,
    std=0.3081,
    make_optimizer=lambda model: torch.optim.SGD(
        [{"params": model.stn.parameters(), "lr": 0.001}, {"params": model.classifier.parameters()}],
        lr=0.01,
    ),
    epochs=100,
)
