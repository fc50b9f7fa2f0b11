"""Experiment 30: with input normalization, canvases enlarged to 120 x 120, the localization net at four learning rates.

And at 0.01 with the two lines of experiment 24; 20 epochs each, to be run with --limit 12000. Strokes are six pixels
wide, not three: is a step too large by the pixels that it moves the region, or by the size of what is drawn?
Seen, two seeds: 0.01 fails in epochs 22 and 26, 0.003, with steps of one to two pixels, lasts 100 and 40 epochs.
"""

from functools import partial

import torch

from common import run_experiment
from stn import SpatialTransformer

for rate, slope, pixels in ((0.0003, 0, None), (0.001, 0, None), (0.003, 0, None), (0.01, 0, None), (0.01, 0.1, 0.1)):
    cured = f", leaky, limited to {pixels} px" if pixels else ""
    run_experiment(
        title=f"normalized, SGD 0.01, localization net {rate}{cured}",
        mean=0.1307,
        std=0.3081,
        make_optimizer=lambda model, rate=rate: torch.optim.SGD(
            [{"params": model.stn.parameters(), "lr": rate}, {"params": model.classifier.parameters()}],
            lr=0.01,
        ),
        epochs=20,
        transformer=partial(SpatialTransformer, slope=slope),
        max_motion=pixels,
        dataset="enlarged",
        variant="leaky_limited" if pixels else rate,
    )
