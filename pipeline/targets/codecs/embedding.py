"""Embedding: every feature of a vector, for heads that are no distribution.

Knows how features become small numbers and back. As int8, a vector has its own scale, max |x| / 127, and a
feature is off by at most max |x| / 254 and the rounding of a float32.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from pipeline.targets.codecs.base import Array, Codec, Encoded, Field, NonFiniteLogits, Of, chunks
from pipeline.targets.codecs.floats import DTYPES, LARGEST, restored, rounded, rounded_torch, too_large
from pipeline.targets.decoded import EmbeddingTargets

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Embedding(Codec):
    """All features of a vector, rounded to `dtype`. Both implementations store the same bytes."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "use_attribute_docstrings": True}
    of: ClassVar[Of] = "embeddings"

    kind: Literal["embedding"] = field(default="embedding", kw_only=True)
    """Every feature of a vector."""

    dtype: Literal["float16", "bfloat16", "float32", "int8"] = "float16"
    """How a feature is stored: float16 holds magnitudes up to 65504 with 3 significant digits, bfloat16 all
    with 2; int8 is off by at most 1/254 of the vector's greatest magnitude."""

    def __post_init__(self) -> None:
        if self.dtype not in {*DTYPES, "int8"}:
            raise ValueError(f"dtype: {self.dtype!r} is none of {', '.join(DTYPES)}, int8")

    def layout(self, size: int) -> tuple[Field, ...]:
        """vectors: [N, D]; with int8 also scale: [N]."""
        if self.dtype == "int8":
            return (Field("vectors", "|i1", (size,)), Field("scale", "<f4"))
        return (Field("vectors", DTYPES[self.dtype], (size,)),)

    def encode(self, logits: Array, uniforms: Array) -> Encoded:
        """logits: the vectors, [N, D]. Raises NonFiniteLogits for any NaN or infinity, ValueError when a
        feature does not fit `dtype`.
        """
        bad = ~np.isfinite(np.abs(logits).max(axis=1))
        if bad.any():
            raise NonFiniteLogits(bad)
        if self.dtype != "int8":
            return {"vectors": rounded(logits, self.dtype)}
        scale, step = _scale(np.abs(logits).max(axis=1))
        codes = np.rint(logits.astype(np.float64) / step).clip(-127, 127)
        return {"vectors": codes.astype("|i1"), "scale": scale}

    def encode_torch(self, logits: torch.Tensor, uniforms: Array) -> Encoded:
        """The same bytes as `encode`, and the same refusals."""
        import torch

        logits = logits.detach()
        bad = ~torch.isfinite(logits).all(dim=1)
        if bool(bad.any()):
            raise NonFiniteLogits(bad.cpu().numpy())
        if self.dtype != "int8":
            return {"vectors": rounded_torch(logits, self.dtype)}
        scale, column = _scale(logits.abs().amax(dim=1).double().cpu().numpy())
        step = torch.from_numpy(column).to(logits.device)
        stored = np.empty(tuple(logits.shape), dtype="|i1")
        starts = chunks(logits)
        for start in starts:
            chunk = slice(start, start + starts.step)
            codes = (logits[chunk].double() / step[chunk]).round_().clamp_(-127, 127)
            stored[chunk] = codes.to(torch.int8).cpu().numpy()
        return {"vectors": stored, "scale": scale}

    def decode(self, encoded: Encoded, size: int) -> EmbeddingTargets:
        """The vectors as float32 [N, D]."""
        if self.dtype != "int8":
            return EmbeddingTargets(restored(encoded["vectors"], self.dtype))
        vectors = encoded["vectors"].astype(np.float32)
        vectors *= encoded["scale"][:, None]
        return EmbeddingTargets(vectors)

    def statistics(self, encoded: Encoded, size: int) -> dict[str, float]:
        """entries: D; payload_bytes per target, before compression."""
        n = len(encoded["vectors"])
        if n == 0:
            return {"entries": 0.0, "payload_bytes": 0.0}
        return {"entries": float(size), "payload_bytes": sum(array.nbytes for array in encoded.values()) / n}


def _scale(greatest: Array) -> tuple[Array, Array]:
    """Of the greatest magnitudes [N]: the scales, float32 [N], and what to divide by, float64 [N, 1].

    A vector of zeros has a scale of 0, and codes of 0. Raises ValueError where a scale does not fit.
    """
    if not (greatest < LARGEST).all():
        raise too_large("int8")
    scale = (greatest.astype(np.float64) / 127).astype("<f4")
    return scale, np.where(scale > 0, scale, 1).astype(np.float64)[:, None]
