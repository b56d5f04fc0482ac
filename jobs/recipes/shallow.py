"""Ba & Caruana's shallow nets for pictures. Knows no training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jobs.recipes.cifar10 import CLASSES, SIDE


class ShallowNet(nn.Module):
    """One convolution 5 × 5 with ReLU and max-pooling, then a wide ReLU layer behind a linear bottleneck.

    Ba & Caruana 2014, sections 2.3 and 4.2: the weights into the wide layer, W [H, D], are a product
    U [H, k] V [k, D] with nothing between the two. Without a bottleneck W is whole.
    uint8 [B, 3, 32, 32] -> logits [B, 10].
    """

    def __init__(self, channels: int, pool: int, bottleneck: int | None, hidden: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, channels, 5, padding=2)
        self.pool = pool
        features = channels * (SIDE // pool) ** 2
        self.wide: nn.Module = nn.Linear(features, hidden)
        if bottleneck is not None:
            self.wide = nn.Sequential(
                nn.Linear(features, bottleneck, bias=False), nn.Linear(bottleneck, hidden)
            )
        self.beta = nn.Linear(hidden, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [B, 10]."""
        x = (image.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)  # twice as fast on CPUs
        # ReLU after the maximum is the same as before it, on as many fewer numbers as the pool is large.
        features = F.relu(F.max_pool2d(self.convolution(x), self.pool))
        logits: Tensor = self.beta(F.relu(self.wide(features.flatten(1))))
        return logits


def shallow(channels: int, pool: int, bottleneck: int | None, hidden: int) -> ShallowNet:
    """For `kind: torch` students."""
    return ShallowNet(channels, pool, bottleneck, hidden)


def weights(arguments: dict[str, int]) -> int:
    """How many such a net has."""
    return sum(p.numel() for p in shallow(**arguments).parameters())
