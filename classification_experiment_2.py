"""Experiment 2: without input normalization.

Black is 0, and so is the padding: there is no frame. Does training last, with SGD at learning rate 0.01?
Seen: most seeds fail, later than in experiment 1; two last and zoom out slowly.
"""

import torch

from common import run_experiment

run_experiment(
    title="not normalized, SGD 0.01",
    mean=0,
    std=1,
    make_optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.01),
    epochs=100,
)
