"""The optimiser and its learning rate: both from the configuration, the rate a function of the step alone."""

from __future__ import annotations

import math

import torch
from torch import nn

from student.config import TrainConfig


def build(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The configured optimiser; weight decay on matrices, not on norms and biases."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas)
    return torch.optim.SGD(
        groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.momentum > 0
    )


def learning_rate(config: TrainConfig, step: int) -> float:
    """Of step 1 to `steps`: a linear warm-up, then constant or half a cosine."""
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - config.warmup_steps) / (config.steps - config.warmup_steps)
    falling = 0.5 * (1 + math.cos(math.pi * progress))
    return config.learning_rate * (config.final_learning_rate + (1 - config.final_learning_rate) * falling)
