"""The nets of the recipes, and the functions by which `kind: torch` teachers and students name them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from jobs.recipes.mnist import CLASSES, PIXELS, SIDE
from student.checkpoint import read as read_checkpoint


class Dropout(nn.Module):
    """Drops a share of the units, a multiple of 1/256, and scales up the others.

    It draws a byte a unit. `nn.Dropout` draws a double, which on a CPU takes longer than the layers between.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.dropped = round(256 * share)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape and dtype."""
        if not self.training or not self.dropped:
            return x
        words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        kept = words.view(torch.uint8)[: x.numel()].view(x.shape) >= self.dropped
        return x * (kept.to(x.dtype) * (256 / (256 - self.dropped)))


class DropoutNet(nn.Module):
    """Hinton et al.'s teacher: ReLU layers that lose a share of their units at every training step.
    uint8 [B, 784] -> logits [B, 10].

    The input is jittered by whoever trains it. Srivastava et al. 2014 bound the norm of the weights into a
    hidden unit: `constrain`.
    """

    def __init__(self, hidden: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        features = PIXELS
        for width in hidden:
            layers += [nn.Linear(features, width), nn.ReLU(), Dropout(dropout)]
            features = width
        self.layers = nn.Sequential(*layers, nn.Linear(features, CLASSES))

    def forward(self, image: Tensor) -> Tensor:
        """Logits [B, 10]."""
        logits: Tensor = self.layers(image.float() / 255)
        return logits

    @torch.no_grad()
    def constrain(self, norm: float) -> None:
        """No hidden unit's incoming weights get longer than `norm`."""
        *hidden, _ = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
        for layer in hidden:
            lengths = torch.linalg.vector_norm(layer.weight, dim=1, keepdim=True)
            if bool((lengths > norm).any()):
                layer.weight.mul_((norm / lengths).clamp(max=1))


def digit_teacher(hidden: list[int], checkpoint: str) -> DropoutNet:
    """A trained one. checkpoint: a directory that `student.checkpoint` wrote."""
    net = DropoutNet(hidden)
    read_checkpoint(Path(checkpoint)).load(net)
    return net


def jittered(images: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Each of the images uint8 [B, 784] moved by up to `most` pixels along both axes; paper moves in."""
    square = images.view(-1, SIDE, SIDE)
    padded = nn.functional.pad(square, (most, most, most, most))
    places = padded.unfold(1, SIDE, 1).unfold(2, SIDE, 1)  # [B, 2 most + 1, 2 most + 1, 28, 28]
    down, across = torch.randint(2 * most + 1, (2, len(images)), generator=generator)
    return places[torch.arange(len(images)), down, across].reshape(len(images), -1)
