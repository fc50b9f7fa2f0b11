"""Experiment 26: with input normalization, Adam 0.001, a localization net that cannot die, limited or not.

The dose, limits of 0.03 to 3 pixels a step and none, 20 epochs each: does the motion alone decide?
Seen, two seeds: best at 0.1, slower at 0.03, worse from 0.3 on; without a limit both leave the image.
"""

from functools import partial

import torch

from common import run_experiment
from stn import SpatialTransformer

for pixels in (0.03, 0.1, 0.3, 1, 3, None):
    run_experiment(
        title=f"normalized, Adam 0.001, leaky, limited to {pixels} px" if pixels else "normalized, Adam 0.001, leaky",
        mean=0.1307,
        std=0.3081,
        make_optimizer=lambda model: torch.optim.Adam(model.parameters(), lr=0.001),
        epochs=20,
        transformer=partial(SpatialTransformer, slope=0.1),
        max_motion=pixels,
        variant=pixels or "unlimited",
    )
