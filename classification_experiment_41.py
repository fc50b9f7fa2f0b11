"""Experiment 41: with input normalization, Adam 0.001, ReLUs as they are, and a rate that follows the drift.

Experiment 36 without the leak: does the rate alone keep the localization net's units alive?
Seen, five seeds: in four; in one they die, and the run ends with one map.
"""

import torch

from common import run_experiment

run_experiment(
    title="normalized, Adam 0.001, drift 0.035",
    mean=0.1307,
    std=0.3081,
    make_optimizer=lambda model: torch.optim.Adam(
        [{"params": model.stn.parameters()}, {"params": model.classifier.parameters()}], lr=0.001
    ),
    epochs=60,
    drift=0.035,
)
