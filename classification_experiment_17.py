"""Experiment 17: with input normalization, the localization net at seven learning rates, 20 epochs each.

On plain digits unless --dataset cluttered: does the localization net's learning rate alone decide?
Seen on plain digits: well up to 0.01; at 0.02 some seeds zoom out, at 0.05 all do; at 0.1 all are off the image.
On cluttered digits, three seeds: they zoom in up to 0.005, at 0.01 hardly, and leave the image from 0.02 on.
"""

import torch

from common import run_experiment

for rate in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1):
    run_experiment(
        title=f"normalized, SGD 0.01, localization net {rate}",
        mean=0.1307,
        std=0.3081,
        make_optimizer=lambda model, rate=rate: torch.optim.SGD(
            [{"params": model.stn.parameters(), "lr": rate}, {"params": model.classifier.parameters()}],
            lr=0.01,
        ),
        epochs=20,
        dataset="mnist",
        variant=rate,
    )
