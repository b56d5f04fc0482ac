"""Top-k: the k likeliest classes with their log-probabilities, and the mass of everything else.

The tail's log-mass at an inverse temperature beta, log sum_tail exp(beta log p_i), makes a head plus one
"everything else" bucket right at temperature 1/beta. With its slope stored too, it is known between the
betas: see `pipeline.targets.tail`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from pipeline.targets.codecs.base import Encoded, Field, id_dtype
from pipeline.targets.codecs.ranking import DTYPES, Ranked, RankingCodec, checked
from pipeline.targets.decoded import TopKTargets


@dataclass(frozen=True)
class TopK(RankingCodec):
    """The k largest logits of a target (all of them when k > V), equal ones by ascending id.

    A class that the teacher excludes (-inf) has log-probability -inf, and so has in float16 one below -65504.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "use_attribute_docstrings": True}

    kind: Literal["topk"] = field(default="topk", kw_only=True)
    """The k likeliest classes."""

    k: int = 64
    """Classes kept of each target."""

    betas: tuple[float, ...] = (1.0,)
    """Inverse temperatures at which the tail's mass is stored, ascending; 0.5 is temperature 2."""

    dtype: Literal["float16", "float32"] = "float16"
    """How a log-probability is stored."""

    slopes: bool = False
    """Store the slope of the tail's log-mass at each of `betas` too, so that all temperatures between are
    valid."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", checked(self.k, self.betas, self.dtype, self.slopes))

    def to_json(self) -> dict[str, Any]:
        """Without `slopes` where they are off: stores that were made before them keep their fingerprint."""
        data = super().to_json()
        return data if self.slopes else {name: value for name, value in data.items() if name != "slopes"}

    def layout(self, size: int) -> tuple[Field, ...]:
        """ids, log_probs: [N, min(k, V)], likeliest first; tail_log_mass, tail_slope: [N, len(betas)]."""
        k = min(self.k, size)
        fields = (
            Field("ids", id_dtype(size), (k,)),
            Field("log_probs", DTYPES[self.dtype], (k,)),
            Field("tail_log_mass", "<f4", (len(self.betas),)),
            Field("tail_slope", "<f4", (len(self.betas),)),
        )
        return fields if self.slopes else fields[:-1]

    def encode_ranked(self, ranked: Ranked, size: int) -> Encoded:
        """See `RankingCodec.encode_ranked`."""
        columns = (ranked.ids, ranked.log_probs, ranked.tail_log_mass, ranked.tail_slope)
        with np.errstate(over="ignore"):
            return {
                stored.name: column.astype(stored.dtype)
                for stored, column in zip(self.layout(size), columns, strict=False)
            }

    def decode(self, encoded: Encoded, size: int) -> TopKTargets:
        """See `TopKTargets`."""
        return TopKTargets(
            ids=encoded["ids"].astype(np.int64),
            log_probs=encoded["log_probs"].astype(np.float32),
            betas=self.betas,
            tail_log_mass=encoded["tail_log_mass"].astype(np.float32),
            size=size,
            tail_slope=encoded["tail_slope"].astype(np.float32) if self.slopes else None,
        )

    def statistics(self, encoded: Encoded, size: int) -> dict[str, float]:
        """entries: min(k, V); captured_mass: probability of the kept classes; payload_bytes per target."""
        n = len(encoded["ids"])
        if n == 0:
            return {"entries": 0.0, "captured_mass": 0.0, "payload_bytes": 0.0}
        mass = np.exp(encoded["log_probs"].astype(np.float64)).sum() / n
        return {
            "entries": float(encoded["ids"].shape[1]),
            "captured_mass": float(mass),
            "payload_bytes": sum(array.nbytes for array in encoded.values()) / n,
        }
