"""Threshold: heavy classes kept, the tail sampled, unbiased."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from pipeline.targets.codecs.base import (
    Array,
    Codec,
    Encoded,
    Field,
    NonFiniteLogits,
    id_dtype,
    offsets_of,
    ranges,
)
from pipeline.targets.decoded import SparseTargets

if TYPE_CHECKING:
    import torch

GRID = 65535
"""Parts that a target's probability is cut into: M of the module's docstring."""


@dataclass(frozen=True)
class Threshold(Codec):
    """Classes of at least `threshold`, and unbiased draws of the rest."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "use_attribute_docstrings": True}
    draws: ClassVar[int] = 2

    kind: Literal["threshold"] = "threshold"
    """Likely classes, and an unbiased sample of the others."""

    threshold: float = 0.02
    """Classes of at least this probability are kept, the others' mass is sampled in draws of about this size.
    Between 1/4096 and 0.5; smaller stores more and varies less."""

    def __post_init__(self) -> None:
        if not 1 / 4096 <= self.threshold <= 0.5:
            raise ValueError(f"threshold: must be between 1/4096 and 0.5, got {self.threshold}")

    def layout(self, size: int) -> tuple[Field, ...]:
        """See the module's docstring."""
        count = "|u1" if math.ceil(1 / self.threshold) <= 255 else "<u2"
        ids = id_dtype(size)
        return (
            Field("head_count", count),
            Field("tail_count", count),
            Field("head_ids", ids, counted_by="head_count"),
            Field("head_values", "<u2", counted_by="head_count"),
            Field("tail_ids", ids, counted_by="tail_count"),
        )

    def encode(self, logits: Array, uniforms: Array) -> Encoded:
        """See `Codec.encode`."""
        top = logits.max(axis=1)
        bad = ~np.isfinite(top)
        if bad.any():
            raise NonFiniteLogits(bad)
        rows = [self._encode_one(row, u, v) for row, (u, v) in zip(logits, uniforms, strict=True)]
        layout = {field.name: field for field in self.layout(logits.shape[1])}
        nothing = np.zeros(0, dtype=np.int64)
        heads = [row[0] for row in rows]
        tails = [row[2] for row in rows]
        columns = {
            "head_count": np.array([len(ids) for ids in heads]),
            "tail_count": np.array([len(ids) for ids in tails]),
            "head_ids": np.concatenate([nothing, *heads]),
            "head_values": np.concatenate([nothing, *(row[1] for row in rows)]),
            "tail_ids": np.concatenate([nothing, *tails]),
        }
        return {name: values.astype(layout[name].dtype) for name, values in columns.items()}

    def _encode_one(self, logits: Array, u: float, v: float) -> tuple[Array, Array, Array]:
        """Head ids, head values and tail ids of one target."""
        mass = np.exp(logits.astype(np.float64) - np.float64(logits.max()))
        is_head = mass >= self.threshold * mass.sum()
        head = np.flatnonzero(is_head)
        running = np.cumsum(np.where(is_head, 0.0, mass))
        tail = running[-1]
        total = mass[head].sum() + tail
        sums = np.minimum(GRID * (np.cumsum(mass[head]) / total), GRID)
        if tail == 0.0:
            sums[-1] = GRID
        values = np.diff(np.floor(sums + v).astype(np.int64), prepend=0)
        draws = math.ceil(tail / total / self.threshold) if values.sum() < GRID else 0
        points = (u + np.arange(draws)) / max(draws, 1) * tail
        points = np.minimum(points, np.nextafter(tail, 0.0))
        return head, values, np.searchsorted(running, points, side="right")

    def encode_torch(self, logits: torch.Tensor, uniforms: Array) -> Encoded:
        """The same."""
        return self.encode(logits.double().cpu().numpy(), uniforms)

    def decode(self, encoded: Encoded, size: int) -> SparseTargets:
        """See `SparseTargets`."""
        heads = encoded["head_count"].astype(np.int64)
        tails = encoded["tail_count"].astype(np.int64)
        offsets = offsets_of(heads + tails)
        in_head = ranges(offsets[:-1], heads)
        in_tail = ranges(offsets[:-1] + heads, tails)
        values = encoded["head_values"].astype(np.int64)
        kept = np.diff(offsets_of(values)[offsets_of(heads)])
        ids = np.empty(offsets[-1], dtype=np.int64)
        weights = np.empty(offsets[-1], dtype=np.float32)
        ids[in_head] = encoded["head_ids"]
        ids[in_tail] = encoded["tail_ids"]
        weights[in_head] = values / GRID
        weights[in_tail] = np.repeat((GRID - kept) / (GRID * np.maximum(tails, 1)), tails)
        return SparseTargets(ids, weights, offsets, heads, size)

    def statistics(self, encoded: Encoded, size: int) -> dict[str, float]:
        """entries: stored ids; captured_mass: the head's probability; payload_bytes per target."""
        n = len(encoded["head_count"])
        if n == 0:
            return {"entries": 0.0, "captured_mass": 0.0, "payload_bytes": 0.0}
        return {
            "entries": (len(encoded["head_ids"]) + len(encoded["tail_ids"])) / n,
            "captured_mass": float(encoded["head_values"].sum(dtype=np.int64)) / GRID / n,
            "payload_bytes": sum(array.nbytes for array in encoded.values()) / n,
        }
