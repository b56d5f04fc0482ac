"""Decoded targets as torch tensors: the same shapes as `pipeline.targets.decoded`, and nothing more.

Knows nothing of stores, batches or losses.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.targets.decoded import (
    DenseTargets,
    EmbeddingTargets,
    Ints,
    SparseTargets,
    Targets,
    TopKTargets,
    TopPTargets,
)
from pipeline.targets.ragged import offsets_of
from pipeline.targets.tail import MeasuredTail

ENOUGH = 100
"""Targets of which at least one has a class above a threshold."""


@dataclass(frozen=True)
class _OnDevice:
    """What the classes share."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same on another device."""
        tensors = {
            field.name: value.to(device, non_blocking=non_blocking)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **tensors)


class _Ragged(_OnDevice):
    """What targets of different numbers of entries share. ids: [E]. bounds: [N + 1], on the host."""

    ids: Tensor
    bounds: Ints

    @functools.cached_property
    def rows(self) -> Tensor:
        """The target that each entry belongs to, int64 [E], ascending. Made where the entries are, when it is
        first asked for: it is as large as they are.
        """
        if len(self.bounds) < 2:
            return self.ids.new_zeros(0)
        entries = len(self.ids)
        begins = torch.from_numpy(self.bounds[1:-1]).to(self.ids.device, non_blocking=True)
        # A running sum, twice as fast as repeats; one place more, for targets at the end that have none.
        marks = begins.new_zeros(entries + 1).index_add_(0, begins, torch.ones_like(begins))[:entries]
        return torch.cumsum(marks, dim=0, out=marks)


@dataclass(frozen=True)
class TorchDense(_OnDevice):
    """Raw teacher logits. logits: float32 [N, V]."""

    logits: Tensor

    def __len__(self) -> int:
        return len(self.logits)

    def slice(self, start: int, stop: int) -> TorchDense:
        """Targets start..stop, as views."""
        return TorchDense(self.logits[start:stop])


@dataclass(frozen=True)
class TorchTopK(_OnDevice, MeasuredTail[Tensor]):
    """The k likeliest classes and the mass of the rest, as in `TopKTargets`.

    ids: int64 [N, k]. log_probs: float32 [N, k], at temperature 1. betas: inverse temperatures.
    tail_log_mass: float32 [N, len(betas)]. size: V. tail_slope: as tail_log_mass, or None.
    """

    ids: Tensor
    log_probs: Tensor
    betas: tuple[float, ...]
    tail_log_mass: Tensor
    size: int
    tail_slope: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def slice(self, start: int, stop: int) -> TorchTopK:
        """Targets start..stop, as views."""
        part = slice(start, stop)
        slope = None if self.tail_slope is None else self.tail_slope[part]
        return dataclasses.replace(
            self,
            ids=self.ids[part],
            log_probs=self.log_probs[part],
            tail_log_mass=self.tail_log_mass[part],
            tail_slope=slope,
        )


@dataclass(frozen=True)
class TorchTopP(_Ragged, MeasuredTail[Tensor]):
    """As many of the likeliest classes as have a share of the mass, and the mass of the rest, as in
    `TopPTargets`.

    ids: int64 [E]. log_probs: float32 [E]. bounds: int64 [N + 1], as in `TorchSparse`.
    betas, tail_log_mass, size, tail_slope: as in `TorchTopK`.
    """

    ids: Tensor
    log_probs: Tensor
    bounds: Ints
    betas: tuple[float, ...]
    tail_log_mass: Tensor
    size: int
    tail_slope: Tensor | None = None

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def slice(self, start: int, stop: int) -> TorchTopP:
        """Targets start..stop; entries as views."""
        bounds = self.bounds[start : stop + 1]
        part = slice(int(bounds[0]), int(bounds[-1]))
        slope = None if self.tail_slope is None else self.tail_slope[start:stop]
        return dataclasses.replace(
            self,
            ids=self.ids[part],
            log_probs=self.log_probs[part],
            bounds=bounds - bounds[0],
            tail_log_mass=self.tail_log_mass[start:stop],
            tail_slope=slope,
        )


@dataclass(frozen=True)
class TorchSparse(_Ragged):
    """An unbiased sparse estimate of the teacher's distribution, as in `SparseTargets`.

    ids: int64 [E]. weights: float32 [E]. bounds: int64 [N + 1], always on the host; target n has the entries
    bounds[n]:bounds[n + 1], so that a part can be cut out without waiting for the device. size: V.
    head_counts: integers [N], on the host too; as many of a target's first entries are kept with their own
    probability, the others are drawn.
    """

    ids: Tensor
    weights: Tensor
    bounds: Ints
    size: int
    head_counts: npt.NDArray[np.integer[Any]]

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def slice(self, start: int, stop: int) -> TorchSparse:
        """Targets start..stop; entries as views."""
        bounds = self.bounds[start : stop + 1]
        part = slice(int(bounds[0]), int(bounds[-1]))
        return TorchSparse(
            self.ids[part],
            self.weights[part],
            bounds - bounds[0],
            self.size,
            self.head_counts[start:stop],
        )

    def head(self) -> TorchTopP:
        """What is kept with its own probability, and the mass of all else, at temperature 1: without draws.

        Raises ValueError if nothing is, of so many targets that a threshold would have left something.
        """
        if len(self) >= ENOUGH and not self.head_counts.any():
            raise ValueError(
                "targets of draws alone (sampled) say no class's own probability: only sparse_cross_entropy "
                "learns from them"
            )
        bounds = offsets_of(self.head_counts)
        entries = np.arange(bounds[-1]) + np.repeat(self.bounds[:-1] - bounds[:-1], self.head_counts)
        head = torch.from_numpy(entries).to(self.ids.device)
        drawn = self.weights.index_fill(0, head, 0)
        tail = self.weights.new_zeros(len(self)).index_add(0, self.rows, drawn)
        return TorchTopP(
            self.ids[head],
            self.weights[head].log(),
            bounds,
            (1.0,),
            tail.log()[:, None],
            self.size,
        )


@dataclass(frozen=True)
class TorchEmbedding(_OnDevice):
    """Vectors of features. vectors: float32 [N, D]."""

    vectors: Tensor

    def __len__(self) -> int:
        return len(self.vectors)

    def slice(self, start: int, stop: int) -> TorchEmbedding:
        """Targets start..stop, as views."""
        return TorchEmbedding(self.vectors[start:stop])


TorchTargets = TorchDense | TorchTopK | TorchTopP | TorchSparse | TorchEmbedding


def to_torch(targets: Targets) -> TorchTargets:
    """Host tensors that share the arrays' memory."""
    match targets:
        case DenseTargets(logits):
            return TorchDense(torch.from_numpy(logits))
        case TopKTargets(ids, log_probs, betas, tail, size, slope):
            return TorchTopK(
                torch.from_numpy(ids),
                torch.from_numpy(log_probs),
                betas,
                torch.from_numpy(tail),
                size,
                None if slope is None else torch.from_numpy(slope),
            )
        case TopPTargets(ids, log_probs, offsets, betas, tail, size, slope):
            return TorchTopP(
                torch.from_numpy(ids),
                torch.from_numpy(log_probs),
                offsets,
                betas,
                torch.from_numpy(tail),
                size,
                None if slope is None else torch.from_numpy(slope),
            )
        case SparseTargets(ids, weights, offsets, heads, size):
            return TorchSparse(torch.from_numpy(ids), torch.from_numpy(weights), offsets, size, heads)
        case EmbeddingTargets(vectors):
            return TorchEmbedding(torch.from_numpy(vectors))
