"""Experiment 35: with input normalization, SGD with momentum, a localization net that cannot die, limited or not.

The dose of 26, limits of 0.03 to 3 pixels a step and none, 20 epochs each: the same for another optimizer?
Seen, two seeds: best at 0.1, slower at 0.03, worse at 0.3; at 1, at 3 and without a limit all leave the image.
"""

from functools import partial

import torch

from common import run_experiment
from stn import SpatialTransformer

for pixels in (0.03, 0.1, 0.3, 1, 3, None):
    run_experiment(
        title=f"normalized, momentum 0.9, leaky, limited to {pixels} px"
        if pixels
        else "normalized, momentum 0.9, leaky",
        mean=0.1307,
        std=0.3081,
        make_optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
        epochs=20,
        transformer=partial(SpatialTransformer, slope=0.1),
        max_motion=pixels,
        variant=pixels or "unlimited",
    )
