"""Logits by rows: what is computed already, and what is computed only for the rows that are asked for.

A language model's logits are its hidden states times a matrix with a row for each word: for a long batch they
are hundreds of times the size of the hidden states, and most of the memory that a forward pass moves. Kept as
hidden states, they are made a chunk at a time, encoded while the chunk is still in the cache, and dropped.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Average = Literal["logits", "probabilities"]


class Logits(ABC):
    """The logits of a batch for one head: [views, V], or [views, L, V] with padding still in it."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Of the whole."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where they are computed."""

    @abstractmethod
    def rows(self, chosen: torch.Tensor) -> torch.Tensor:
        """Some rows, [n, V], on the device. chosen: int64 [n], places in the flattened [views * L]."""

    @abstractmethod
    def first(self, classes: int) -> Logits:
        """The same without what is behind so many classes, as if the teacher had no more. What is left out
        is not computed, if it was not before, and has no part in any normalisation.
        """

    def whole(self) -> torch.Tensor:
        """All of them at once, in their shape: for what cannot work by rows."""
        import torch

        return self.rows(torch.arange(math.prod(self.shape[:-1]))).view(self.shape)


@dataclass(frozen=True)
class Given(Logits):
    """Logits that are there."""

    tensor: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def rows(self, chosen: torch.Tensor) -> torch.Tensor:
        return self.tensor.flatten(0, -2).index_select(0, chosen.to(self.device))

    def first(self, classes: int) -> Given:
        return Given(self.tensor[..., :classes])


@dataclass(frozen=True)
class Projection:
    """From hidden states to logits: y = scale (h Wᵀ + b), and if there is a softcap c, c tanh(y / c).

    weight: [V, D]; bias: [V] or None.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., D] to [..., V]."""
        import torch.nn.functional as F

        logits = F.linear(hidden.to(self.weight), self.weight, self.bias)
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = (logits / self.softcap).tanh() * self.softcap
        return logits

    def first(self, classes: int) -> Projection:
        """To so many classes; weight and bias as views."""
        bias = None if self.bias is None else self.bias[:classes]
        return replace(self, weight=self.weight[:classes], bias=bias)


@dataclass(frozen=True)
class Projected(Logits):
    """Logits that are computed when they are asked for. hidden: [views, L, D] or [views, D]."""

    hidden: torch.Tensor
    projection: Projection

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.hidden.shape[:-1], self.projection.weight.shape[0])

    @property
    def device(self) -> torch.device:
        return self.hidden.device

    def rows(self, chosen: torch.Tensor) -> torch.Tensor:
        return self.projection(Given(self.hidden).rows(chosen))

    def first(self, classes: int) -> Projected:
        return Projected(self.hidden, self.projection.first(classes))


@dataclass(frozen=True)
class Mean(Logits):
    """The mean of several of one shape, in float32 on the first one's device.

    "logits": mean_m z_m. "probabilities": log mean_m softmax(z_m).
    """

    members: Sequence[Logits]
    of: Average

    @property
    def shape(self) -> tuple[int, ...]:
        return self.members[0].shape

    @property
    def device(self) -> torch.device:
        return self.members[0].device

    def rows(self, chosen: torch.Tensor) -> torch.Tensor:
        import torch

        total: torch.Tensor | None = None
        for member in self.members:
            values = member.rows(chosen).float()
            if self.of == "probabilities":
                values = torch.log_softmax(values, dim=-1)
            values = values.to(self.device)
            if total is None:
                total = values
            elif self.of == "probabilities":
                total = torch.logaddexp(total, values)
            else:
                total = total + values
        assert total is not None
        count = len(self.members)
        return total - math.log(count) if self.of == "probabilities" else total / count

    def first(self, classes: int) -> Mean:
        return Mean([member.first(classes) for member in self.members], self.of)


def as_logits(value: Logits | torch.Tensor) -> Logits:
    """What a teacher returned for a head, by rows."""
    return value if isinstance(value, Logits) else Given(value)
