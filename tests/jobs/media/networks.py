"""A teacher of a person's own: a small network for spectrograms."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Ear(nn.Module):
    """Two convolutions and a hidden layer, for log-mel spectrograms [B, 32, 32] in nats."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(32 * 8 * 8, 128), nn.ReLU(), nn.Linear(128, 10)),
        )

    def forward(self, log_mel: Tensor) -> Tensor:
        logits: Tensor = self.layers((log_mel[:, None] + 8) / 16)
        return logits


def ear(weights: str) -> nn.Module:
    """With these weights."""
    model = Ear()
    model.load_state_dict(torch.load(weights, weights_only=True))
    return model
