"""Threshold as stores of format version 1 have it: read for ever, written no more.

The same entries as `threshold`, but values on a grid of M = 65535 parts in two bytes, the likeliest class
among them, and ids as they are. What the tail has is what the head's parts leave of M.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NoReturn

import numpy as np

from pipeline.targets.codecs.base import Array, Codec, Encoded, Field, id_dtype
from pipeline.targets.decoded import SparseTargets
from pipeline.targets.errors import SpecMismatch
from pipeline.targets.ragged import offsets_of, ranges

if TYPE_CHECKING:
    import torch

GRID = 65535
"""Parts that a target's probability is cut into: M of the module's docstring."""


@dataclass(frozen=True)
class ThresholdV1(Codec):
    """Reads the threshold codec of format version 1."""

    kind: Literal["threshold"] = field(default="threshold", kw_only=True)
    threshold: float = 0.02

    def layout(self, size: int) -> tuple[Field, ...]:
        """Counts are one byte each if 1 / threshold <= 255. head_ids ascend, head_values are their c_i;
        tail_ids ascend, with repetitions.
        """
        count = "|u1" if math.ceil(1 / self.threshold) <= 255 else "<u2"
        ids = id_dtype(size)
        return (
            Field("head_count", count),
            Field("tail_count", count),
            Field("head_ids", ids, counted_by="head_count"),
            Field("head_values", "<u2", counted_by="head_count"),
            Field("tail_ids", ids, counted_by="tail_count"),
        )

    def encode(self, logits: Array, uniforms: Array) -> NoReturn:
        """Raises SpecMismatch: nothing is added to a store of version 1."""
        raise SpecMismatch("a store of format version 1 is read, not written: label into a new store")

    def encode_torch(self, logits: torch.Tensor, uniforms: Array) -> NoReturn:
        """Raises SpecMismatch."""
        self.encode(np.zeros((0, 0)), uniforms)

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
