"""Experiment 28: with input normalization, SGD with momentum, the localization net at three learning rates.

What most people's papers do, momentum 0.9, 40 epochs each: how much slower has the localization net to learn?
Seen, two seeds: at 0.0001 both last, with 93 %; at 0.0003 one collapses and one ends with one map; 0.001 collapses.
"""

import torch

from common import run_experiment

for rate in (0.0001, 0.0003, 0.001):
    run_experiment(
        title=f"normalized, momentum 0.9, localization net {rate}",
        mean=0.1307,
        std=0.3081,
        make_optimizer=lambda model, rate=rate: torch.optim.SGD(
            [{"params": model.stn.parameters(), "lr": rate}, {"params": model.classifier.parameters()}],
            lr=0.01,
            momentum=0.9,
        ),
        epochs=40,
        variant=rate,
    )
