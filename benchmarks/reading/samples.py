"""Decoded samples, as other systems keep them, and the tensors that every reader ends with.

A sample is what a student gets of a row, in the smallest dtypes that hold it: others are not charged for
int64. NumPy and torch only: some of the others need an environment of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Sample = dict[str, npt.NDArray[Any]]

DTYPES = {"tokens": "<u2", "count": "|u1", "ids": "<u2", "weights": "<f4", "logits": "<f2", "vectors": "<f2"}
"""Of a sample's arrays. count: entries of each target; ids, weights: of all of them; logits or vectors:
[V]."""


def collate(batch: list[Sample]) -> dict[str, torch.Tensor]:
    """What every reader ends with: tokens padded, all else end to end, ids int64, numbers float32."""
    tensors = {}
    for name in batch[0].keys() & DTYPES.keys():
        arrays = [sample[name] for sample in batch]
        if name == "tokens":
            lengths = [len(array) for array in arrays]
            padded = np.zeros((len(arrays), max(lengths)), dtype=np.int64)
            for row, array in zip(padded, arrays, strict=True):
                row[: len(array)] = array
            tensors[name] = torch.from_numpy(padded)
        else:
            tensors[name] = WIDENED[name](torch.from_numpy(np.concatenate(arrays)))
    return tensors


def _long(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.long()


def _float(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float()


WIDENED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "tokens": _long,
    "count": _long,
    "ids": _long,
    "weights": _float,
    "logits": _float,
    "vectors": _float,
}
