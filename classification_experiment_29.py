"""Experiment 29: with input normalization, SGD 0.01, the localization net at half of that.

The rate between 0.001, which lasts, and 0.01, which fails: 20 epochs of it are in experiment 17. Does it last for 100?
Seen, three seeds: it does, with 95 %, though most of its steps are over a pixel. Its scale creeps up.
"""

import torch

from common import run_experiment

run_experiment(
    title="normalized, SGD 0.01, localization net 0.005",
    mean=0.1307,
    std=0.3081,
    make_optimizer=lambda model: torch.optim.SGD(
        [{"params": model.stn.parameters(), "lr": 0.005}, {"params": model.classifier.parameters()}],
        lr=0.01,
    ),
    epochs=100,
)
