"""Dense: every raw logit, for heads with few classes.

Knows how logits become float16 or float32 and back. Raw logits and not probabilities, because Ba & Caruana
("Do Deep Nets Really Need to be Deep?", 2014) regress on them and a shift common to a row matters there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from pipeline.targets.codecs.base import Array, Codec, Encoded, Field, NonFiniteLogits
from pipeline.targets.decoded import DenseTargets

if TYPE_CHECKING:
    import torch

DTYPES = {"float16": "<f2", "float32": "<f4"}


@dataclass(frozen=True)
class Dense(Codec):
    """All logits of a target, rounded to `dtype`; -inf (a class the teacher excludes) is kept.

    Both implementations store the same bytes.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "use_attribute_docstrings": True}

    kind: Literal["dense"] = field(default="dense", kw_only=True)
    """Every raw logit."""

    dtype: Literal["float16", "float32"] = "float16"
    """How a logit is stored: float16 holds magnitudes up to 65504 with 3 significant digits."""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: {self.dtype!r} is none of {', '.join(DTYPES)}")

    def layout(self, size: int) -> tuple[Field, ...]:
        """logits: [N, V]."""
        return (Field("logits", DTYPES[self.dtype], (size,)),)

    def encode(self, logits: Array, uniforms: Array) -> Encoded:
        """See `Codec.encode`. Raises ValueError when a finite logit does not fit `dtype`."""
        bad = ~np.isfinite(logits.max(axis=1))
        if bad.any():
            raise NonFiniteLogits(bad)
        with np.errstate(over="ignore"):
            stored = logits.astype(DTYPES[self.dtype])
        if bool((np.isinf(stored) & ~np.isinf(logits)).any()):
            raise self._overflow()
        return {"logits": stored}

    def encode_torch(self, logits: torch.Tensor, uniforms: Array) -> Encoded:
        """The same bytes as `encode`. Raises ValueError when a finite logit does not fit `dtype`."""
        import torch

        logits = logits.detach()
        bad = ~torch.isfinite(logits.amax(dim=1))
        if bool(bad.any()):
            raise NonFiniteLogits(bad.cpu().numpy())
        stored = logits.to(torch.float16 if self.dtype == "float16" else torch.float32)
        if bool((stored.isinf() & ~logits.isinf()).any()):
            raise self._overflow()
        return {"logits": stored.cpu().numpy()}

    def decode(self, encoded: Encoded, size: int) -> DenseTargets:
        """The logits as float32 [N, V]."""
        return DenseTargets(encoded["logits"].astype(np.float32))

    def statistics(self, encoded: Encoded, size: int) -> dict[str, float]:
        """entries: V; captured_mass: 1; payload_bytes per target, before compression."""
        if len(encoded["logits"]) == 0:
            return {"entries": 0.0, "captured_mass": 0.0, "payload_bytes": 0.0}
        itemsize = np.dtype(DTYPES[self.dtype]).itemsize
        return {"entries": float(size), "captured_mass": 1.0, "payload_bytes": float(size * itemsize)}

    def _overflow(self) -> ValueError:
        cure = (
            'use dtype "float32" for this head' if self.dtype == "float16" else "scale the teacher's logits"
        )
        return ValueError(f"a logit is too large for the head's dtype {self.dtype}: {cure}")
