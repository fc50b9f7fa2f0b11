"""Experiment 12: with input normalization, its effect on the learning rate taken back.

To divide the image by std is, for the two convolutions that see it, to multiply their learning rate by 1 / std^2 and
their first weights by 1 / std: conv(x / s, w) = conv(x, w / s). Does experiment 1 last with the learning rate of 2?
Seen: both seeds learn as soon as those of 1, and lose their solution all the same, to dead ReLUs.
"""

import torch

from common import run_experiment

run_experiment(
    title="normalized, SGD 0.01, first convolutions 0.01 std^2",
    mean=0.1307,
    std=0.3081,
    make_optimizer=lambda model: torch.optim.SGD(
        [
            {"params": [model.stn.localization[0].weight, model.classifier[0].weight], "lr": 0.01 * 0.3081**2},
            {"params": [model.stn.localization[0].bias, *model.stn.localization[1:].parameters()]},
            {"params": [model.classifier[0].bias, *model.classifier[1:].parameters()]},
            {"params": model.stn.fc_loc.parameters()},
        ],
        lr=0.01,
    ),
    epochs=100,
)
