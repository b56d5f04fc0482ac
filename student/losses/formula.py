"""What a loss is: a formula for a few rows of logits. Knows no targets and no model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

PART_ELEMENTS = 1 << 22
"""Logits per part: 16 MiB in float32."""


class Formula(ABC):
    """Losses of rows start..stop of N, of their logits z [C, V] in float32 (float64 for those of float64)."""

    @abstractmethod
    def losses(self, z: Tensor, start: int, stop: int) -> Tensor:
        """The losses [C]. Leaves z as it is."""

    def derive(self, z: Tensor, start: int, stop: int, upstream: Tensor) -> tuple[Tensor, Tensor]:
        """The losses, and the gradient [C, V] of Σ upstream · losses in z. May write over z.

        By autograd; a formula that knows its gradient writes it over z instead, and needs no memory.
        """
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            losses = self.losses(z, start, stop)
        return losses.detach(), torch.autograd.grad(losses, z, upstream)[0]


class Mixture(Formula):
    """Σ_i c_i · formula_i."""

    def __init__(self, terms: Sequence[tuple[float, Formula]]) -> None:
        self.terms = terms

    def losses(self, z: Tensor, start: int, stop: int) -> Tensor:
        return torch.stack([c * formula.losses(z, start, stop) for c, formula in self.terms]).sum(0)

    def derive(self, z: Tensor, start: int, stop: int, upstream: Tensor) -> tuple[Tensor, Tensor]:
        (c, formula), *others = self.terms
        found = [other.derive(z.clone(), start, stop, weight * upstream) for weight, other in others]
        losses, gradient = formula.derive(z, start, stop, c * upstream)
        losses = c * losses
        for (weight, _), (more, part) in zip(others, found, strict=True):
            losses, gradient = losses + weight * more, gradient.add_(part)
        return losses, gradient


def parts(rows: int, most: int) -> Iterator[tuple[int, int]]:
    """start and stop of parts of at most so many rows."""
    return ((start, min(start + most, rows)) for start in range(0, rows, most))


def rows_per_part(classes: int) -> int:
    """How many rows of logits are worked on at a time."""
    return max(1, PART_ELEMENTS // max(1, classes))


def upcast(logits: Tensor) -> Tensor:
    """In float32, or float64 as it is."""
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
