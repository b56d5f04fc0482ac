"""Rows of a shard as arrays, and as Arrow record batches, with no copy on the way back.

A row is one view of one record: its identity, its inputs, and for each head the targets as its codec stores
them. Containers read and write record batches of `Spec.schema()`; everything else works with `Rows`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.targets.codecs import base
from pipeline.targets.codecs.base import Array, Encoded, offsets_of, ranges
from pipeline.targets.decoded import Targets
from pipeline.targets.errors import CorruptShard
from pipeline.targets.spec import Head, Spec


@dataclass(frozen=True)
class Ragged:
    """Arrays of several rows, end to end. values: [total, *item shape]; offsets: int64 [rows + 1]."""

    values: Array
    offsets: npt.NDArray[np.int64]

    def __getitem__(self, row: int) -> Array:
        """The array of one row, a view."""
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Items of each row, int64 [rows]."""
        return np.diff(self.offsets)

    def take(self, rows: npt.NDArray[np.int64]) -> Ragged:
        """The chosen rows, in the order given."""
        lengths = self.lengths[rows]
        return Ragged(self.values[ranges(self.offsets[rows], lengths)], offsets_of(lengths))


@dataclass(frozen=True)
class Rows:
    """Some rows of a store.

    keys: record keys; row: ordinal of the record in its unit, int64 [rows]; view, views: int32 [rows];
    targets: int32 [rows], targets of each "next_token" head; inputs: by name, fixed-shape inputs as
    [rows, *shape] arrays and varying ones as Ragged; heads: by name, what the codec stored.
    """

    spec: Spec
    keys: Sequence[str]
    row: npt.NDArray[np.int64]
    view: npt.NDArray[np.int32]
    views: npt.NDArray[np.int32]
    targets: npt.NDArray[np.int32]
    inputs: Mapping[str, Array | Ragged]
    heads: Mapping[str, Encoded]

    def __len__(self) -> int:
        return len(self.keys)

    def counts(self, head: Head) -> npt.NDArray[np.int64]:
        """How many targets of the head each row has, int64 [rows]."""
        if head.positions == "single":
            return np.ones(len(self), dtype=np.int64)
        return self.targets.astype(np.int64)

    def decode(self, head: str) -> Targets:
        """The head's targets of all rows, one row after the other."""
        declared = self.spec.head(head)
        return declared.codec.decode(self.heads[head], declared.size)

    def take(self, rows: npt.NDArray[np.int64]) -> Rows:
        """The chosen rows, in the order given: one gather an array."""
        heads = {}
        for head in self.spec.heads:
            counts = self.counts(head)
            chosen = ranges(offsets_of(counts)[:-1][rows], counts[rows])
            heads[head.name] = base.take(self.heads[head.name], head.codec.layout(head.size), chosen)
        return Rows(
            spec=self.spec,
            keys=[self.keys[i] for i in rows],
            row=self.row[rows],
            view=self.view[rows],
            views=self.views[rows],
            targets=self.targets[rows],
            inputs={n: a.take(rows) if isinstance(a, Ragged) else a[rows] for n, a in self.inputs.items()},
            heads=heads,
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Rows]) -> Rows:
        """All rows of at least one part, one part after the other."""
        spec = parts[0].spec
        inputs: dict[str, Array | Ragged] = {}
        for item in spec.inputs:
            arrays = [part.inputs[item.name] for part in parts]
            ragged = [array for array in arrays if isinstance(array, Ragged)]
            inputs[item.name] = (
                Ragged(
                    np.concatenate([array.values for array in ragged]),
                    offsets_of(np.concatenate([array.lengths for array in ragged])),
                )
                if ragged
                else np.concatenate(arrays)  # type: ignore[arg-type]
            )
        return cls(
            spec=spec,
            keys=[key for part in parts for key in part.keys],
            row=np.concatenate([part.row for part in parts]),
            view=np.concatenate([part.view for part in parts]),
            views=np.concatenate([part.views for part in parts]),
            targets=np.concatenate([part.targets for part in parts]),
            inputs=inputs,
            heads={
                head.name: base.concatenate(
                    [part.heads[head.name] for part in parts], head.codec.layout(head.size)
                )
                for head in spec.heads
            },
        )

    def to_arrow(self) -> pa.RecordBatch:
        """One record batch of `spec.schema()`."""
        columns: list[pa.Array] = [
            pa.array(self.keys, pa.string()),
            pa.array(self.row, pa.int64()),
            pa.array(self.view, pa.int32()),
            pa.array(self.views, pa.int32()),
            pa.array(self.targets, pa.int32()),
        ]
        for item in self.spec.inputs:
            stored = self.inputs[item.name]
            if isinstance(stored, Ragged):
                columns.append(_binary(stored.values.astype(item.dtype, copy=False), stored.offsets))
            else:
                columns.append(_binary(stored.astype(item.dtype, copy=False), np.arange(len(self) + 1)))
        for head in self.spec.heads:
            encoded, bounds = self.heads[head.name], offsets_of(self.counts(head))
            for field in head.codec.layout(head.size):
                offsets = bounds
                if field.counted_by is not None:
                    offsets = offsets_of(encoded[field.counted_by])[bounds]
                columns.append(_binary(encoded[field.name].astype(field.dtype, copy=False), offsets))
        return pa.RecordBatch.from_arrays(columns, schema=self.spec.schema())

    @classmethod
    def from_arrow(cls, spec: Spec, batch: pa.RecordBatch) -> Rows:
        """Views on the batch's buffers. Raises CorruptShard when sizes and counts contradict each other."""
        rows = batch.num_rows
        targets = batch.column("targets").to_numpy(zero_copy_only=False)
        if rows and int(targets.min()) < 0:
            raise CorruptShard("a row has a negative number of targets")
        inputs: dict[str, Array | Ragged] = {}
        for item in spec.inputs:
            values, offsets = _flat(batch.column(f"in.{item.name}"), item.dtype, _items(item.shape))
            shaped = values.reshape(-1, *_fixed(item.shape))
            if item.shape and item.shape[0] is None:
                inputs[item.name] = Ragged(shaped, offsets)
            else:
                _expect(
                    bool((np.diff(offsets) == 1).all()),
                    f"input {item.name}: a row has not shape {item.shape}",
                )
                inputs[item.name] = values.reshape(rows, *(int(extent or 0) for extent in item.shape))
        heads: dict[str, Encoded] = {}
        for head in spec.heads:
            counts = np.ones(rows, dtype=np.int64) if head.positions == "single" else targets.astype(np.int64)
            bounds, encoded = offsets_of(counts), {}
            for field in head.codec.layout(head.size):
                name = f"{head.name}.{field.name}"
                values, offsets = _flat(
                    batch.column(name), field.dtype, int(np.prod(field.shape, dtype=np.int64))
                )
                expected = bounds
                if field.counted_by is not None:
                    expected = offsets_of(encoded[field.counted_by])[bounds]
                _expect(
                    np.array_equal(offsets, expected), f"{name}: its length disagrees with the row's counts"
                )
                encoded[field.name] = values.reshape(-1, *field.shape)
            heads[head.name] = encoded
        return cls(
            spec=spec,
            keys=batch.column("key").to_pylist(),
            row=batch.column("row").to_numpy(zero_copy_only=False),
            view=batch.column("view").to_numpy(zero_copy_only=False),
            views=batch.column("views").to_numpy(zero_copy_only=False),
            targets=targets,
            inputs=inputs,
            heads=heads,
        )


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise CorruptShard(otherwise)


def _fixed(shape: tuple[int | None, ...]) -> tuple[int, ...]:
    """The extents of one item: without the varying first dimension, if there is one."""
    return tuple(extent for extent in shape if extent is not None)


def _items(shape: tuple[int | None, ...]) -> int:
    return int(np.prod(_fixed(shape), dtype=np.int64))


def _binary(values: Array, offsets: npt.NDArray[np.int64]) -> pa.Array:
    """A binary column over the array's own memory; offsets count items along its first dimension."""
    data = np.ascontiguousarray(values)
    item = data.dtype.itemsize * int(np.prod(data.shape[1:], dtype=np.int64))
    bounds = offsets * item
    if int(bounds[-1]) > np.iinfo(np.int32).max:
        raise ValueError("more than 2 GiB in one column of a batch: write smaller batches")
    buffers = [None, pa.py_buffer(bounds.astype(np.int32)), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.binary(), len(offsets) - 1, buffers)


def _flat(column: pa.Array, dtype: str, items: int) -> tuple[Array, npt.NDArray[np.int64]]:
    """The bytes of a binary column as one flat array, and row offsets in units of `items` values."""
    _, bounds_buffer, data = column.buffers()
    if column.null_count:
        raise CorruptShard("a binary column holds a null")
    bounds = np.frombuffer(bounds_buffer, dtype=np.int32)[column.offset : column.offset + len(column) + 1]
    bounds = bounds.astype(np.int64)
    size = np.dtype(dtype).itemsize * items
    if len(bounds) == 0:
        bounds = np.zeros(1, dtype=np.int64)
    if size == 0 or bool(((bounds - bounds[0]) % size).any()):
        raise CorruptShard(f"a column's length is no multiple of {size} bytes")
    raw = memoryview(data)[int(bounds[0]) : int(bounds[-1])] if data is not None else b""
    return np.frombuffer(raw, dtype=dtype), (bounds - bounds[0]) // size
