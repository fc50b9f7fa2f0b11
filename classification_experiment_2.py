"""Experiment 2: without input normalization.

Black is 0, and so is the padding: there is no frame. Does training last, with SGD at learning rate 0.01?
Seen with seed 0: it collapsed in epoch 46 all the same, after 91.6 % at best; of seeds 1 to 3 only seed 2 held.
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
