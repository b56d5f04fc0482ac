"""Teachers of a person's own: a residual network for CIFAR-10 and a small network for spectrograms.

The first is that of He et al. 2016, section 4.2, with shortcuts of option A: every other pixel, new channels
filled with zeros.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.new = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        short = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.new // 2, self.new // 2))
        return F.relu(short + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class ResNet(nn.Module):
    """Of 6 · blocks + 2 layers, for bytes [B, 3, 32, 32], which it normalises itself."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(*(Block(*(first if not i else (last, last, 1))) for i in range(blocks)))
            for first, last in (((16, 16, 1), 16), ((16, 32, 2), 32), ((32, 64, 2), 64))
        )
        self.linear = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        x = F.relu(self.bn1(self.conv1((image.float() / 255 - mean) / std)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def resnet20(weights: str) -> nn.Module:
    """With the weights of a file that DataParallel saved."""
    saved = torch.load(weights, map_location="cpu", weights_only=True)["state_dict"]
    model = ResNet(3)
    model.load_state_dict({name.removeprefix("module."): value for name, value in saved.items()})
    return model


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
