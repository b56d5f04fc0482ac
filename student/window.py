"""Tables laid end to end and indexed by row, so that taking a batch costs what the batch weighs.

Knows tables, nothing of orders, batches or tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.targets.codecs.base import offsets_of, ranges
from pipeline.targets.decoded import Ints
from student.table import Column, Table, widened

LONG = 256
"""Mean bytes of a row from which rows are taken from where they are; shorter ones are laid end to end."""


class _Apart:
    """A column of long rows, which stay where they are."""

    def __init__(self, parts: Sequence[Column]) -> None:
        self._part = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        self._row = np.concatenate([np.arange(len(part)) for part in parts])


class _Alike(_Apart):
    """All of one length: as many gathers as there are tables."""

    def __init__(self, parts: Sequence[Column]) -> None:
        super().__init__(parts)
        self._values = [part.values for part in parts]

    def take(self, rows: Ints) -> Column:
        first = self._values[0]
        if len(self._values) == 1:
            return Column(first.take(rows, axis=0))
        taken = np.empty((len(rows), *first.shape[1:]), first.dtype)
        parts, places = self._part[rows], self._row[rows]
        for part, values in enumerate(self._values):
            chosen = np.flatnonzero(parts == part)
            taken[chosen] = values.take(places[chosen], axis=0)
        return Column(taken)


class _Slices(_Apart):
    """Of different lengths: a slice for each row, converted to `dtype` on the way."""

    def __init__(self, parts: Sequence[Column], dtype: npt.DTypeLike) -> None:
        super().__init__(parts)
        self._dtype = dtype
        ragged = [part.ragged() for part in parts]
        self._values = [part.values for part in ragged]
        self._starts = np.concatenate([part.offsets[:-1] for part in ragged])
        self._stops = np.concatenate([part.offsets[1:] for part in ragged])

    def take(self, rows: Ints) -> Column:
        starts, stops = self._starts[rows], self._stops[rows]
        if len(self._values) == 1 and bool((starts[1:] == stops[:-1]).all()):  # in order
            return Column(
                self._values[0][starts[0] : stops[-1]].astype(self._dtype), offsets_of(stops - starts)
            )
        places = zip(self._part[rows].tolist(), starts.tolist(), stops.tolist(), strict=True)
        slices = [self._values[part][start:stop] for part, start, stop in places]
        values = np.concatenate(slices, dtype=self._dtype)
        return Column(values, offsets_of(stops - starts))


class _Gathered:
    """A column of short rows, end to end, of another dtype if need be."""

    def __init__(self, parts: Sequence[Column], dtype: npt.DTypeLike) -> None:
        both = Column.concatenate(parts)
        self._column = Column(both.values.astype(dtype, copy=False), both.bounds)

    def take(self, rows: Ints) -> Column:
        bounds = self._column.bounds
        if bounds is None:
            return Column(self._column.values.take(rows, axis=0))
        starts, lengths = bounds[rows], bounds[rows + 1] - bounds[rows]
        return Column(self._column.values[ranges(starts, lengths)], offsets_of(lengths))


class Window:
    """Some thousand rows in memory."""

    def __init__(self, parts: Sequence[Table]) -> None:
        """At least one table."""
        self._spec = parts[0].spec
        self._keys = [key for part in parts for key in part.keys]
        self.lengths: Ints = np.concatenate([part.lengths for part in parts])
        """int64 [rows], true extent of the first varying input; 1 if none varies."""
        wide = widened(self._spec)
        self._columns = {
            name: _taker([part.columns[name] for part in parts], wide.get(name)) for name in parts[0].columns
        }

    def __len__(self) -> int:
        return len(self._keys)

    def take(self, rows: Ints) -> Table:
        """The chosen rows, in the order given, as arrays of their own, in the dtypes of `widened`."""
        columns = {name: column.take(rows) for name, column in self._columns.items()}
        return Table(self._spec, [self._keys[row] for row in rows.tolist()], columns)


def _taker(parts: Sequence[Column], wide: npt.DTypeLike | None) -> _Alike | _Slices | _Gathered:
    parts = [part for part in parts if len(part)] or parts
    dtype = parts[0].values.dtype if wide is None else np.dtype(wide)
    if sum(part.values.nbytes for part in parts) < LONG * sum(map(len, parts)):
        return _Gathered(parts, dtype)
    kinds = {(part.bounds is None, part.values.shape[1:], part.values.dtype) for part in parts}
    alike = parts[0].bounds is None and kinds == {(True, parts[0].values.shape[1:], dtype)}
    return _Alike(parts) if alike else _Slices(parts, dtype)
