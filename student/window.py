"""Rows laid end to end and indexed by row, so that taking a batch costs what the batch weighs.

Knows how rows are stored, nothing of orders, batches or tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.targets.codecs.base import Array, offsets_of, ranges
from pipeline.targets.decoded import Ints
from pipeline.targets.ragged import Ragged
from pipeline.targets.rows import Rows

LONG = 16
"""Items per row from which copying slices is faster than gathering items one by one."""


@dataclass(frozen=True)
class _Column:
    """One stored array, and where each row begins: int64 [rows + 1]. width: items of every row, or 0."""

    values: Array
    bounds: Ints
    width: int

    @classmethod
    def of(cls, values: Array, bounds: Ints) -> _Column:
        lengths = np.diff(bounds)
        width = int(lengths[0]) if len(lengths) and bool((lengths == lengths[0]).all()) else 0
        return cls(values, bounds, width)

    def take(self, rows: Ints) -> Array:
        """The items of the chosen rows, end to end."""
        if self.width:
            shape = self.values.shape[1:]
            chosen: Array = self.values.reshape(-1, self.width, *shape)[rows]
            return chosen.reshape(-1, *shape)
        starts, stops = self.bounds[rows], self.bounds[rows + 1]
        if len(self.values) < LONG * (len(self.bounds) - 1):
            return self.values[ranges(starts, stops - starts)]
        return np.concatenate(
            [self.values[a:b] for a, b in zip(starts.tolist(), stops.tolist(), strict=True)]
        )


class Window:
    """Some thousand rows in memory."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self._rows = rows = Rows.concatenate(parts)
        self._inputs = {
            name: _Column.of(stored.values, stored.offsets)
            for name, stored in rows.inputs.items()
            if isinstance(stored, Ragged)
        }
        self._heads = {}
        for head in rows.spec.heads:
            encoded, targets = rows.heads[head.name], offsets_of(rows.counts(head))
            self._heads[head.name] = {
                field.name: _Column.of(
                    encoded[field.name],
                    targets if field.counted_by is None else offsets_of(encoded[field.counted_by])[targets],
                )
                for field in head.codec.layout(head.size)
            }

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, rows: Ints) -> Rows:
        """The chosen rows, in the order given: the same as `Rows.take`."""
        whole = self._rows
        inputs: dict[str, Array | Ragged] = {}
        for name, stored in whole.inputs.items():
            if isinstance(stored, Ragged):
                inputs[name] = Ragged(self._inputs[name].take(rows), offsets_of(stored.lengths[rows]))
            else:
                inputs[name] = stored[rows]
        return Rows(
            spec=whole.spec,
            keys=[whole.keys[i] for i in rows.tolist()],
            row=whole.row[rows],
            view=whole.view[rows],
            views=whole.views[rows],
            targets=whole.targets[rows],
            inputs=inputs,
            heads={
                head: {name: column.take(rows) for name, column in columns.items()}
                for head, columns in self._heads.items()
            },
        )
