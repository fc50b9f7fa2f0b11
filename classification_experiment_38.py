"""Experiment 38: with input normalization, one cycle of Adam in 10 epochs, with what has done best.

Leaky units, a rate that follows the drift, images smoothed before they are sampled: how soon has it 95 %?
The cycle is of 10 epochs of 60,000 images: with more epochs or fewer images change `total_steps`.
Seen, five seeds: 95.2 to 95.9 % after the tenth epoch, 90 % by the fourth.
"""

from functools import partial

import torch
import torch.nn.functional as F

from common import run_experiment
from stn import SpatialTransformer


class Smoothed(SpatialTransformer):
    def sample(self, images, theta):
        return super().sample(F.avg_pool2d(F.pad(images, (1, 1, 1, 1), "replicate"), 3, stride=1), theta)


run_experiment(
    title="normalized, Adam, one cycle, leaky, smoothed, drift 0.035",
    mean=0.1307,
    std=0.3081,
    make_optimizer=lambda model: torch.optim.Adam(
        [{"params": model.stn.parameters()}, {"params": model.classifier.parameters()}]
    ),
    make_scheduler=lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=[0.001, 0.002], total_steps=9380
    ),
    epochs=10,
    transformer=partial(Smoothed, slope=0.1),
    drift=0.035,
)
