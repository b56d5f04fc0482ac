"""The networks of the digits teacher, and the factory that `TorchCallable` names. Knows no training."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from safetensors.torch import load_model
from torch import Tensor, nn

from student.config import MLP, AnyModel, SmallCNN
from student.models import build

Architecture = Literal["cnn", "mlp"]

SHAPE = (8, 8)
"""Pixels of a digit."""

CLASSES = 10

_CONFIGS: dict[Architecture, AnyModel] = {
    "cnn": SmallCNN(channels=[20, 40], hidden=96),
    "mlp": MLP(hidden=[256, 256], dropout=0.1),
}


class Member(nn.Module):
    """One network of the ensemble, called with the input's name in the store."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.network = build(_CONFIGS[architecture], SHAPE, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """image: uint8 [N, 8, 8]. Logits float32 [N, 10]."""
        logits: Tensor = self.network(image)
        return logits


def member(architecture: Architecture, weights: str) -> Member:
    """A trained member. weights: its safetensors file."""
    network = Member(architecture)
    load_model(network, Path(weights))
    return network
