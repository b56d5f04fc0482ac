"""Arrays of different lengths, end to end. It knows offsets, and nothing of what the arrays mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def offsets_of(counts: Array) -> npt.NDArray[np.int64]:
    """Exclusive running sum: [0, c0, c0+c1, ...], int64 [N + 1]."""
    offsets = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(np.asarray(counts, dtype=np.int64), out=offsets[1:])  # half the time of casting on the way
    return offsets


def ranges(starts: Array, lengths: Array) -> npt.NDArray[np.int64]:
    """The concatenation of arange(start, start + length) for every pair, int64."""
    lengths = np.asarray(lengths, dtype=np.int64)
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    out = np.repeat(np.asarray(starts, dtype=np.int64) - (ends - lengths), lengths)
    out += np.arange(total, dtype=np.int64)
    return out


@dataclass(frozen=True)
class Ragged:
    """Arrays of several rows, end to end. values: [total, *item shape]; offsets: int64 [rows + 1].

    offsets rise from 0 to total; ValueError otherwise.
    """

    values: Array
    offsets: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        bounds = self.offsets
        if not len(bounds) or bounds[0] != 0 or bounds[-1] != len(self.values) or (np.diff(bounds) < 0).any():
            raise ValueError(f"offsets do not rise from 0 to the {len(self.values)} values")

    def __getitem__(self, row: int) -> Array:
        """The array of one row, a view."""
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def slice(self, start: int, stop: int) -> Ragged:
        """Consecutive rows, as views."""
        bounds = self.offsets[start : stop + 1]
        return Ragged(self.values[bounds[0] : bounds[-1]], bounds - bounds[0])

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Items of each row, int64 [rows]."""
        return np.diff(self.offsets)

    def take(self, rows: npt.NDArray[np.int64]) -> Ragged:
        """The chosen rows, in the order given."""
        lengths = self.lengths[rows]
        return Ragged(self.values[ranges(self.offsets[rows], lengths)], offsets_of(lengths))

    @classmethod
    def concatenate(cls, parts: Sequence[Ragged]) -> Ragged:
        """All rows of at least one, one after the other."""
        return cls(
            np.concatenate([part.values for part in parts]),
            offsets_of(np.concatenate([part.lengths for part in parts])),
        )
