"""Experiment 6: normalization's subtraction of the mean alone.

Black is -0.13, there is a frame, but inputs are no larger than without normalization: is it the mean?
Seen: most seeds fail, as without normalization; one lasts and zooms out slowly.
"""

import torch

from common import run_experiment

run_experiment(
    title="mean subtracted alone, SGD 0.01",
    mean=0.1307,
    std=1,
    make_optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.01),
    epochs=100,
)
