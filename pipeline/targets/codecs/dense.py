"""Dense: every raw logit, for heads with few classes.

Knows how logits become small numbers and back. Raw logits and not probabilities, because Ba & Caruana ("Do
Deep Nets Really Need to be Deep?", 2014) regress on them and a shift common to a row matters there.

As int8, a row has two numbers more, its centre and its scale. With its finite logits between m and M,

    centre = (M + m) / 2,  scale = (M - m) / 254,  logit = centre + scale code,  code in -127 .. 127,

so a logit is off by at most (M - m) / 508 and the rounding of a float32. Code -128 is an excluded class.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from pipeline.targets.codecs.base import Array, Codec, Encoded, Field, NonFiniteLogits, chunks
from pipeline.targets.codecs.floats import DTYPES, LARGEST, restored, rounded, rounded_torch, too_large
from pipeline.targets.decoded import DenseTargets

if TYPE_CHECKING:
    import torch

EXCLUDED = -128
"""The int8 code of a logit of -inf."""


@dataclass(frozen=True)
class Dense(Codec):
    """All logits of a target, rounded to `dtype`; -inf (a class the teacher excludes) is kept.

    Both implementations store the same bytes.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "use_attribute_docstrings": True}

    kind: Literal["dense"] = field(default="dense", kw_only=True)
    """Every raw logit."""

    dtype: Literal["float16", "bfloat16", "float32", "int8"] = "float16"
    """How a logit is stored: float16 holds magnitudes up to 65504 with 3 significant digits, bfloat16 all
    with 2; int8 is off by at most 1/508 of the distance between a row's least and greatest logit."""

    def __post_init__(self) -> None:
        if self.dtype not in {*DTYPES, "int8"}:
            raise ValueError(f"dtype: {self.dtype!r} is none of {', '.join(DTYPES)}, int8")

    def layout(self, size: int) -> tuple[Field, ...]:
        """logits: [N, V]; with int8 also centre and scale: [N]."""
        if self.dtype == "int8":
            return (Field("logits", "|i1", (size,)), Field("centre", "<f4"), Field("scale", "<f4"))
        return (Field("logits", DTYPES[self.dtype], (size,)),)

    def encode(self, logits: Array, uniforms: Array) -> Encoded:
        """See `Codec.encode`. Raises ValueError when a finite logit does not fit `dtype`."""
        bad = ~np.isfinite(logits.max(axis=1))
        if bad.any():
            raise NonFiniteLogits(bad)
        if self.dtype != "int8":
            return {"logits": rounded(logits, self.dtype)}
        excluded = np.isneginf(logits)
        centre, scale = _affine(np.where(excluded, np.inf, logits).min(axis=1), logits.max(axis=1))
        middle, step = _column(centre), _column(np.where(scale > 0, scale, 1))
        codes = np.rint((logits.astype(np.float64) - middle) / step).clip(-127, 127)
        codes[excluded] = EXCLUDED
        return {"logits": codes.astype("|i1"), "centre": centre, "scale": scale}

    def encode_torch(self, logits: torch.Tensor, uniforms: Array) -> Encoded:
        """The same bytes as `encode`. Raises ValueError when a finite logit does not fit `dtype`."""
        import torch

        logits = logits.detach()
        bad = ~torch.isfinite(logits.amax(dim=1))
        if bool(bad.any()):
            raise NonFiniteLogits(bad.cpu().numpy())
        if self.dtype != "int8":
            return {"logits": rounded_torch(logits, self.dtype)}
        lowest = logits.masked_fill(logits.isneginf(), torch.inf).amin(dim=1)
        centre, scale = _affine(*(each.double().cpu().numpy() for each in (lowest, logits.amax(dim=1))))
        columns = (_column(centre), _column(np.where(scale > 0, scale, 1)))
        middle, step = (torch.from_numpy(column).to(logits.device) for column in columns)
        stored = np.empty(tuple(logits.shape), dtype="|i1")
        starts = chunks(logits)
        for start in starts:
            chunk = slice(start, start + starts.step)
            codes = ((logits[chunk].double() - middle[chunk]) / step[chunk]).round_().clamp_(-127, 127)
            codes.masked_fill_(logits[chunk].isneginf(), EXCLUDED)
            stored[chunk] = codes.to(torch.int8).cpu().numpy()
        return {"logits": stored, "centre": centre, "scale": scale}

    def decode(self, encoded: Encoded, size: int) -> DenseTargets:
        """The logits as float32 [N, V]."""
        stored = encoded["logits"]
        if self.dtype != "int8":
            return DenseTargets(restored(stored, self.dtype))
        logits = stored.astype(np.float32)
        logits *= encoded["scale"][:, None]
        logits += encoded["centre"][:, None]
        logits[stored == EXCLUDED] = -np.inf
        return DenseTargets(logits)

    def statistics(self, encoded: Encoded, size: int) -> dict[str, float]:
        """entries: V; captured_mass: 1; payload_bytes per target, before compression."""
        n = len(encoded["logits"])
        if n == 0:
            return {"entries": 0.0, "captured_mass": 0.0, "payload_bytes": 0.0}
        payload = sum(array.nbytes for array in encoded.values()) / n
        return {"entries": float(size), "captured_mass": 1.0, "payload_bytes": payload}


def _affine(lowest: Array, highest: Array) -> tuple[Array, Array]:
    """Centre and scale of rows, float32 [N]; a scale of 0 if a row has but one value, and then codes of 0.

    Raises ValueError where a number does not fit.
    """
    low, high = lowest.astype(np.float64), highest.astype(np.float64)
    if not (np.maximum(-low, high) < LARGEST).all():
        raise too_large("int8")
    # NumPy and torch differ in which zero of two is the greater; + 0.0 leaves but one.
    centre, scale = (high + low) / 2 + 0.0, (high - low) / 254
    return centre.astype("<f4"), scale.astype("<f4")


def _column(numbers: Array) -> Array:
    """[N] to float64 [N, 1]."""
    return numbers.astype(np.float64)[:, None]
