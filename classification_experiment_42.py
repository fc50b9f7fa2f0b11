"""Experiment 42: experiment 36 with the localization net's gradient scaled to norm 1 in every step, 20 epochs each.

A limit on every step makes Adam's steps equally long, and Adam learns faster with it: does a gradient of one length do
that too, beside a rate that follows the drift? Rates of SGD are ten times as high, since its gradient is shorter.
"""

from functools import partial

import torch
from torch.nn.utils import get_total_norm

from common import run_experiment
from stn import SpatialTransformer

OPTIMIZERS = {
    "adam": partial(torch.optim.Adam, lr=0.001),
    "sgd": partial(torch.optim.SGD, lr=0.01),
    "momentum": partial(torch.optim.SGD, lr=0.01, momentum=0.9),
}


def scale_gradient(optimizer, *_):
    gradients = [weight.grad for weight in optimizer.param_groups[0]["params"]]
    norm = get_total_norm(gradients).clamp(min=1e-12)
    for gradient in gradients:
        gradient.div_(norm)


def make_optimizer(model, name):
    rate = 0.001 if name == "adam" else 0.1
    localization, classifier = ({"params": part.parameters()} for part in (model.stn, model.classifier))
    optimizer = OPTIMIZERS[name]([localization | {"lr": rate}, classifier])
    optimizer.register_step_pre_hook(scale_gradient)
    return optimizer


for name in OPTIMIZERS:
    run_experiment(
        title=f"normalized, {name}, leaky, drift 0.035, unit gradient",
        mean=0.1307,
        std=0.3081,
        make_optimizer=partial(make_optimizer, name=name),
        epochs=20,
        transformer=partial(SpatialTransformer, slope=0.1),
        drift=0.035,
        variant=name,
    )
