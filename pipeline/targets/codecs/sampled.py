"""Random Sampling KD: draws from the teacher's distribution, with replacement, and how often each class came.

The published unbiased scheme (Sparse Logit Sampling, ACL 2025), at the teacher's own temperature: each of N
draws falls on class i with probability p_i, and a class that came c times gets the weight c/N. E[c/N] = p_i.
Here for interchange and comparison: at as many entries, `threshold` varies less.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from pipeline.targets.codecs.base import (
    Array,
    Codec,
    Encoded,
    Field,
    NonFiniteLogits,
    chunks,
    count_dtype,
    id_dtype,
    offsets_of,
)
from pipeline.targets.decoded import SparseTargets

if TYPE_CHECKING:
    import torch

MOST = 65535
"""Most draws of a target: a class's count fits two bytes."""


@dataclass(frozen=True)
class Sampled(Codec):
    """`draws` draws with replacement, stored as the classes that came and how often."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "use_attribute_docstrings": True}

    kind: Literal["sampled"] = field(default="sampled", kw_only=True)
    """Draws from the distribution, with replacement."""

    draws: int = 50
    """Draws of each target, at most 65535. Of 50, about 12 different classes come on a language model."""

    def __post_init__(self) -> None:
        if not isinstance(self.draws, int) or not 1 <= self.draws <= MOST:
            raise ValueError(f"draws: must be a whole number from 1 to {MOST}, got {self.draws!r}")

    def layout(self, size: int) -> tuple[Field, ...]:
        """count: [N], different classes; ids: ragged, ascending; hits: ragged, how often each came."""
        return (
            Field("count", count_dtype(self.draws)),
            Field("ids", id_dtype(size), counted_by="count"),
            Field("hits", count_dtype(self.draws), counted_by="count"),
        )

    def encode(self, logits: Array, uniforms: Array) -> Encoded:
        """See `Codec.encode`; each uniform is one draw, through the inverse of the distribution function."""
        bad = ~np.isfinite(logits.max(axis=1))
        if bad.any():
            raise NonFiniteLogits(bad)
        drawn = np.zeros((len(logits), self.draws), dtype=np.int64)
        for n, (row, u) in enumerate(zip(logits, uniforms, strict=True)):
            running = np.cumsum(np.exp(row.astype(np.float64) - np.float64(row.max())))
            # A point may round up to the whole; it belongs to the last class that has any mass.
            points = np.minimum(u * running[-1], np.nextafter(running[-1], 0.0))
            drawn[n] = np.searchsorted(running, points, side="right")
        return self._stored(drawn, logits.shape[1])

    def encode_torch(self, logits: torch.Tensor, uniforms: Array) -> Encoded:
        """The same on the tensor's device. Probabilities are float32 (float64 for float64 logits), their
        running sums float64: a draw within 1e-6 of the border between two classes may fall on the neighbour.
        """
        import torch

        logits = logits.detach()
        bad = ~torch.isfinite(logits.amax(dim=1))
        if bool(bad.any()):
            raise NonFiniteLogits(bad.cpu().numpy())
        count, size = logits.shape
        u = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)
        drawn = torch.zeros(count, self.draws, dtype=torch.int64, device=logits.device)
        dtype = torch.promote_types(logits.dtype, torch.float32)
        starts = chunks(logits)
        for start in starts:
            chunk = slice(start, start + starts.step)
            running = torch.softmax(logits[chunk], dim=1, dtype=dtype).double().cumsum_(dim=1)
            total = running[:, -1:]
            points = torch.minimum(u[chunk] * total, torch.nextafter(total, torch.zeros_like(total)))
            drawn[chunk] = torch.searchsorted(running, points, right=True)
        # An accelerator's parallel running sums may rise by a rounding error where there is no mass.
        return self._stored(drawn.clamp_(max=size - 1).cpu().numpy(), size)

    def _stored(self, drawn: Array, size: int) -> Encoded:
        """drawn: int64 [N, draws], in any order."""
        drawn = np.sort(drawn, axis=1)
        first = np.diff(drawn, axis=1, prepend=-1) != 0
        hits = np.diff(np.flatnonzero(first), append=drawn.size)
        columns = (first.sum(axis=1), drawn[first], hits)
        return {
            stored.name: column.astype(stored.dtype)
            for stored, column in zip(self.layout(size), columns, strict=True)
        }

    def decode(self, encoded: Encoded, size: int) -> SparseTargets:
        """See `SparseTargets`: no class is kept with its probability, so there is no head."""
        count = encoded["count"]
        return SparseTargets(
            ids=encoded["ids"].astype(np.int64),
            weights=(encoded["hits"] / self.draws).astype(np.float32),
            offsets=offsets_of(count),
            head_counts=np.zeros(len(count), dtype=np.int64),
            size=size,
        )

    def statistics(self, encoded: Encoded, size: int) -> dict[str, float]:
        """entries: different classes; captured_mass: 0, for no probability is stored; payload_bytes."""
        n = len(encoded["count"])
        if n == 0:
            return {"entries": 0.0, "captured_mass": 0.0, "payload_bytes": 0.0}
        return {
            "entries": len(encoded["ids"]) / n,
            "captured_mass": 0.0,
            "payload_bytes": sum(array.nbytes for array in encoded.values()) / n,
        }
