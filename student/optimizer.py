"""The optimiser and its learning rate: both from the configuration, the rate a function of the step alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from student.config import TrainConfig


def build(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The configured optimiser, its moments made; weight decay on matrices, not on norms and biases."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    optimizer: torch.optim.Optimizer
    if config.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas)
    else:
        optimizer = torch.optim.SGD(
            groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.momentum > 0
        )
    make_moments(optimizer)
    return optimizer


def make_moments(optimizer: torch.optim.Optimizer) -> None:
    """All moments, zero, by a step of nothing: no gradient, no learning rate (each step sets its own).

    torch makes those of a parameter at its first gradient. Then a checkpoint would lack the moments of a
    parameter that never had one, and saved ones could not be read into an optimiser that has not stepped.
    """
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    for state in optimizer.state.values():
        for moment in state.values():
            if isinstance(moment, Tensor):
                moment.zero_()


def learning_rate(config: TrainConfig, step: int) -> float:
    """Of step 1 to `steps`: a linear warm-up, then what the schedule says.

    wsd: the rate falls with the square root of the progress, 1 − √x (Hägele et al. 2024, section 3).
    """
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    match config.schedule:
        case "constant":
            return config.learning_rate
        case "cosine":
            progress = (step - config.warmup_steps) / (config.steps - config.warmup_steps)
            left = 0.5 * (1 + math.cos(math.pi * progress))
        case "wsd":
            falling = config.decay_share * config.steps
            left = 1 - math.sqrt(max(0.0, (step - config.steps + falling) / falling))
    return config.learning_rate * (config.final_learning_rate + (1 - config.final_learning_rate) * left)
