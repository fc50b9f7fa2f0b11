"""Experiment 40: with input normalization, the localization nets of experiment 31, and a rate that follows the drift.

Those of daviddao/spatial-transformer-tensorflow and aicaffeinelife/Pytorch-STN before our classifier, Adam 0.001, the
second leaky, 30 epochs each: is it the same number for other networks?
Seen, two seeds each: both follow the digits and last, daviddao's with 93 %, as if limited (31), aicaffeinelife's
with 94 %, a point less than limited.
"""

from functools import partial

import torch
from torch import nn

from common import run_experiment
from stn import Regression, SpatialTransformer


class OfDaviddao(SpatialTransformer):
    def __init__(self, in_size, out_size=28, fill=0.0, channels=1):
        super().__init__(in_size, out_size, fill, channels)
        first = nn.Linear(channels * in_size**2, 20)
        nn.init.zeros_(first.weight)
        nn.init.normal_(first.bias, std=0.01)
        self.localization = nn.Identity()
        self.fc_loc = nn.Sequential(first, nn.Tanh(), nn.Dropout(0.2), Regression(20), nn.Tanh())


class OfAicaffeinelife(SpatialTransformer):
    def __init__(self, in_size, out_size=28, fill=0.0, channels=1, slope=0.0):
        super().__init__(in_size, out_size, fill, channels)
        first = nn.Conv2d(channels, 32, kernel_size=3, padding=1, bias=False)
        second, third = (nn.Conv2d(32, 32, kernel_size=3, padding=1, bias=False) for _ in range(2))
        relu, pool = nn.LeakyReLU(slope), nn.MaxPool2d(2)
        self.localization = nn.Sequential(first, relu, second, relu, pool, third, relu, pool, third, relu, pool)
        self.fc_loc = nn.Sequential(nn.Linear(32 * (in_size // 8) ** 2, 1024), nn.Linear(1024, 6))


for name, transformer in (("daviddao", OfDaviddao), ("aicaffeinelife_leaky", partial(OfAicaffeinelife, slope=0.1))):
    run_experiment(
        title=f"normalized, Adam 0.001, {name.replace('_', ', ')}, drift 0.035",
        mean=0.1307,
        std=0.3081,
        make_optimizer=lambda model: torch.optim.Adam(
            [{"params": model.stn.parameters()}, {"params": model.classifier.parameters()}], lr=0.001
        ),
        epochs=30,
        transformer=transformer,
        drift=0.035,
        variant=name,
    )
