"""Decoded targets as torch tensors: the same three shapes as `pipeline.targets.decoded`, and nothing more.

Knows nothing of stores, batches or losses.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from pipeline.targets.decoded import DenseTargets, Ints, SparseTargets, Targets, TopKTargets


@dataclass(frozen=True)
class _OnDevice:
    """What the three classes share."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same on another device."""
        tensors = {
            field.name: value.to(device, non_blocking=non_blocking)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **tensors)


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
class TorchTopK(_OnDevice):
    """The k likeliest classes and the mass of the rest, as in `TopKTargets`.

    ids: int64 [N, k]. log_probs: float32 [N, k], at temperature 1. betas: inverse temperatures.
    tail_log_mass: float32 [N, len(betas)]. size: V.
    """

    ids: Tensor
    log_probs: Tensor
    betas: tuple[float, ...]
    tail_log_mass: Tensor
    size: int

    def __len__(self) -> int:
        return len(self.ids)

    def slice(self, start: int, stop: int) -> TorchTopK:
        """Targets start..stop, as views."""
        part = slice(start, stop)
        return TorchTopK(
            self.ids[part], self.log_probs[part], self.betas, self.tail_log_mass[part], self.size
        )


@dataclass(frozen=True)
class TorchSparse(_OnDevice):
    """An unbiased sparse estimate of the teacher's distribution, as in `SparseTargets`.

    ids: int64 [E]. weights: float32 [E]. rows: int64 [E], the target an entry belongs to, ascending.
    bounds: int64 [N + 1], always on the host; target n has the entries bounds[n]:bounds[n + 1], so that a
    part can be cut out without waiting for the device. size: V.
    """

    ids: Tensor
    weights: Tensor
    rows: Tensor
    bounds: Ints
    size: int

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def slice(self, start: int, stop: int) -> TorchSparse:
        """Targets start..stop; entries as views."""
        bounds = self.bounds[start : stop + 1]
        part = slice(int(bounds[0]), int(bounds[-1]))
        return TorchSparse(
            self.ids[part], self.weights[part], self.rows[part] - start, bounds - bounds[0], self.size
        )


TorchTargets = TorchDense | TorchTopK | TorchSparse


def to_torch(targets: Targets) -> TorchTargets:
    """Host tensors that share the arrays' memory."""
    match targets:
        case DenseTargets(logits):
            return TorchDense(torch.from_numpy(logits))
        case TopKTargets(ids, log_probs, betas, tail, size):
            return TorchTopK(
                torch.from_numpy(ids), torch.from_numpy(log_probs), betas, torch.from_numpy(tail), size
            )
        case SparseTargets(ids, weights, offsets, _, size):
            rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
            return TorchSparse(
                torch.from_numpy(ids), torch.from_numpy(weights), torch.from_numpy(rows), offsets, size
            )
