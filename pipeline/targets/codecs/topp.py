"""Top-p: as many of the likeliest classes as hold a share of the mass, and the mass of everything else.

Where top-k stores k classes of every target, this stores one of a certain target and up to k of an uncertain
one. The tail is every class that is not stored, measured as top-k measures it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from pipeline.targets.codecs.base import Array, Encoded, Field, count_dtype, id_dtype, offsets_of
from pipeline.targets.codecs.ranking import DTYPES, Ranked, RankingCodec, checked, tilted
from pipeline.targets.decoded import TopPTargets


@dataclass(frozen=True)
class TopP(RankingCodec):
    """The fewest of the likeliest classes that have a probability of at least `p` together, at most `k`.

    Equal classes by ascending id. A class that the teacher excludes (-inf) is never stored.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "use_attribute_docstrings": True}

    kind: Literal["topp"] = field(default="topp", kw_only=True)
    """The likeliest classes up to a share of the mass."""

    p: float = 0.95
    """Probability that the stored classes have together, if `k` of them are enough; above 0, below 1."""

    k: int = 64
    """Most classes kept of a target."""

    betas: tuple[float, ...] = (1.0,)
    """Inverse temperatures at which the tail's mass is stored, ascending; 0.5 is temperature 2."""

    dtype: Literal["float16", "float32"] = "float16"
    """How a log-probability is stored."""

    slopes: bool = False
    """Store the slope of the tail's log-mass at each of `betas` too, so that all temperatures between are
    valid."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", checked(self.k, self.betas, self.dtype, self.slopes))
        if not isinstance(self.p, float) or not 0 < self.p < 1:
            raise ValueError(f"p: must be above 0 and below 1, got {self.p!r}")

    def layout(self, size: int) -> tuple[Field, ...]:
        """count: [N]; ids, log_probs: ragged, likeliest first; tail_log_mass, tail_slope: [N, len(betas)]."""
        fields = (
            Field("count", count_dtype(min(self.k, size))),
            Field("ids", id_dtype(size), counted_by="count"),
            Field("log_probs", DTYPES[self.dtype], counted_by="count"),
            Field("tail_log_mass", "<f4", (len(self.betas),)),
            Field("tail_slope", "<f4", (len(self.betas),)),
        )
        return fields if self.slopes else fields[:-1]

    def encode_ranked(self, ranked: Ranked, size: int) -> Encoded:
        """See `RankingCodec.encode_ranked`. Where some of the likeliest classes have within 1e-6 of `p`,
        rounding decides whether one more is kept.
        """
        possible = (ranked.log_probs > -np.inf).sum(axis=1)
        short = np.exp(ranked.log_probs).cumsum(axis=1) < self.p
        count = np.minimum(short.sum(axis=1) + 1, possible)
        kept = np.arange(short.shape[1]) < count[:, None]
        columns = (count, ranked.ids[kept], ranked.log_probs[kept], *self._tail(ranked, kept))
        with np.errstate(over="ignore"):
            return {
                stored.name: column.astype(stored.dtype)
                for stored, column in zip(self.layout(size), columns, strict=False)
            }

    def _tail(self, ranked: Ranked, kept: Array) -> tuple[Array, Array]:
        """Log-mass and slope of all classes that are not kept, ranked or not."""
        masses, slopes = tilted(np.where(kept, -np.inf, ranked.log_probs), self.betas)
        total = np.logaddexp(masses, ranked.tail_log_mass)
        finite = np.maximum(total, np.finfo(np.float64).min)
        share, rest = np.exp(masses - finite), np.exp(ranked.tail_log_mass - finite)
        return total, share * slopes + rest * ranked.tail_slope

    def decode(self, encoded: Encoded, size: int) -> TopPTargets:
        """See `TopPTargets`. Raises ValueError for a target without a class."""
        if len(encoded["count"]) and not encoded["count"].min():
            raise ValueError("a target has no class")
        return TopPTargets(
            ids=encoded["ids"].astype(np.int64),
            log_probs=encoded["log_probs"].astype(np.float32),
            offsets=offsets_of(encoded["count"]),
            betas=self.betas,
            tail_log_mass=encoded["tail_log_mass"].astype(np.float32),
            size=size,
            tail_slope=encoded["tail_slope"].astype(np.float32) if self.slopes else None,
        )

    def statistics(self, encoded: Encoded, size: int) -> dict[str, float]:
        """entries: stored classes; captured_mass: their probability; payload_bytes per target."""
        n = len(encoded["count"])
        if n == 0:
            return {"entries": 0.0, "captured_mass": 0.0, "payload_bytes": 0.0}
        return {
            "entries": len(encoded["ids"]) / n,
            "captured_mass": float(np.exp(encoded["log_probs"].astype(np.float64)).sum() / n),
            "payload_bytes": sum(array.nbytes for array in encoded.values()) / n,
        }
