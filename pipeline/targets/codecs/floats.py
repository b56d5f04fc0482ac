"""Real numbers as float32, float16 or bfloat16: to the nearest, and never to infinity.

NumPy has no bfloat16; it is stored as its bits, the upper half of a float32, in "<u2".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipeline.targets.codecs.base import Array

if TYPE_CHECKING:
    import torch

LARGEST = 3e38
"""Magnitude up to which a scale times a code, in float32, cannot become infinite by rounding."""

DTYPES = {"float16": "<f2", "bfloat16": "<u2", "float32": "<f4"}
"""How each is stored."""


def rounded(values: Array, dtype: str) -> Array:
    """To the nearest, ties to even; infinities stay. Raises ValueError if a finite number does not fit."""
    with np.errstate(over="ignore"):
        if dtype == "bfloat16":
            bits = values.astype("<f4").view("<u4")
            stored = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2")
            infinite = (stored & 0x7FFF) == 0x7F80
        else:
            stored = values.astype(DTYPES[dtype])
            infinite = np.isinf(stored)
    if bool((infinite & ~np.isinf(values)).any()):
        raise too_large(dtype)
    return np.asarray(stored)


def rounded_torch(values: torch.Tensor, dtype: str) -> Array:
    """The same bytes, on the tensor's device. Raises ValueError if a finite number does not fit."""
    import torch

    stored = values.to(getattr(torch, dtype))
    if bool((stored.isinf() & ~values.isinf()).any()):
        raise too_large(dtype)
    if dtype == "bfloat16":
        stored = stored.view(torch.int16)
    return stored.cpu().contiguous().numpy().view(DTYPES[dtype])


def restored(stored: Array, dtype: str) -> npt.NDArray[np.float32]:
    """Exactly what was stored, as float32."""
    if dtype == "bfloat16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32)


def too_large(dtype: str) -> ValueError:
    """For a finite number that does not fit."""
    cure = (
        'use dtype "bfloat16" or "float32" for this head'
        if dtype == "float16"
        else "scale the teacher's outputs"
    )
    return ValueError(f"a number of the teacher's is too large for the head's dtype {dtype}: {cure}")
