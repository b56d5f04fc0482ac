"""Rows of a shard as arrays, and as Arrow record batches, with no copy on the way back.

A row is one view of one record: its identity, its inputs, and for each head the targets as its codec stores
them. Containers read and write record batches of `Spec.schema()`; everything else works with `Rows`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.targets.codecs import base
from pipeline.targets.codecs.base import Encoded
from pipeline.targets.decoded import Targets
from pipeline.targets.errors import CorruptShard
from pipeline.targets.ragged import Array, Ragged, offsets_of, ranges
from pipeline.targets.spec import TOKENS, Head, Spec


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
            inputs[item.name] = Ragged.concatenate(ragged) if ragged else np.concatenate(arrays)  # type: ignore[arg-type]
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
        """One record batch of `spec.schema()`.

        Raises ValueError, naming the column, for arrays that are not what the spec declares or that
        contradict each other: nothing is cast, padded or cut.
        """
        rows = len(self)
        columns: list[pa.Array] = [pa.array(self.keys, pa.string())]
        for name, kind in _NUMBERS.items():
            numbers = getattr(self, name)
            _require(numbers.shape == (rows,), f"{name} has shape {numbers.shape}, not ({rows},)")
            columns.append(pa.array(numbers, kind))
        _require(not (wrong := _contradiction(self)), wrong)
        for item in self.spec.inputs:
            stored, name = self.inputs[item.name], f"in.{item.name}"
            _require(isinstance(stored, Ragged) == item.varies, f"{name} is Ragged exactly if it varies")
            values = stored.values if isinstance(stored, Ragged) else stored
            offsets = stored.offsets if isinstance(stored, Ragged) else np.arange(rows + 1)
            _require(len(offsets) == rows + 1, f"{name} has {len(offsets) - 1} rows, not {rows}")
            columns.append(_binary(name, values, offsets, item.dtype, item.item_shape))
        for head in self.spec.heads:
            encoded, counts = self.heads[head.name], self.counts(head)
            _agree(head, encoded, int(counts.sum()))
            packed = head.codec.pack(encoded, counts, head.size)
            for column in head.codec.columns(head.size):
                values, offsets = packed[column.name].values, packed[column.name].offsets
                columns.append(
                    _binary(f"{head.name}.{column.name}", values, offsets, column.dtype, column.shape)
                )
        return pa.RecordBatch.from_arrays(columns, schema=self.spec.schema())

    @classmethod
    def from_arrow(cls, spec: Spec, batch: pa.RecordBatch) -> Rows:
        """Views on the batch's buffers.

        Raises CorruptShard when the batch is not of the spec's schema, or its sizes and counts contradict
        each other. The batch may come from anywhere.
        """
        _expect(batch.schema.equals(spec.schema()), "its columns are not those that the spec declares")
        for column, field in zip(batch.columns, batch.schema, strict=True):
            _expect(not column.null_count, f"column {field.name} holds a null")
        rows = batch.num_rows
        numbers = {name: batch.column(name).to_numpy() for name in _NUMBERS}
        _expect(not rows or int(numbers["targets"].min()) >= 0, "a row has a negative number of targets")
        inputs: dict[str, Array | Ragged] = {}
        for item in spec.inputs:
            name = f"in.{item.name}"
            values, offsets = _flat(name, batch.column(name), item.dtype, item.item_shape)
            if item.varies:
                inputs[item.name] = Ragged(values, offsets)
            else:
                _expect(bool((np.diff(offsets) == 1).all()), f"a row of {name} has not shape {item.shape}")
                inputs[item.name] = values
        heads: dict[str, Encoded] = {}
        for head in spec.heads:
            counts = np.ones(rows) if head.positions == "single" else numbers["targets"]
            stored = {}
            for column in head.codec.columns(head.size):
                name = f"{head.name}.{column.name}"
                stored[column.name] = Ragged(*_flat(name, batch.column(name), column.dtype, column.shape))
            try:
                heads[head.name] = head.codec.unpack(stored, counts.astype(np.int64), head.size)
            except ValueError as error:
                raise CorruptShard(f"{head.name}.{error}") from error
        try:
            keys = batch.column("key").to_pylist()
        except UnicodeDecodeError as error:
            raise CorruptShard(f"a key is not UTF-8: {error}") from error
        found = cls(spec=spec, keys=keys, inputs=inputs, heads=heads, **numbers)
        _expect(not (wrong := _contradiction(found)), wrong)
        return found


_NUMBERS = {"row": pa.int64(), "view": pa.int32(), "views": pa.int32(), "targets": pa.int32()}


def in_order(batches: Iterable[Rows], more: Rows) -> Iterator[Rows]:
    """Batches of rows that are sorted by record and view, with more rows put in their places."""
    more = more.take(np.argsort(_places(more)))
    places, start = _places(more), 0
    for batch in batches:
        stop = int(np.searchsorted(places, _places(batch)[-1]))
        if stop > start:
            both = Rows.concatenate([batch, more.take(np.arange(start, stop))])
            batch, start = both.take(np.argsort(_places(both))), stop
        yield batch
    if start < len(more):
        yield more.take(np.arange(start, len(more)))


def _places(rows: Rows) -> npt.NDArray[np.int64]:
    """A number for each row, which rises with its record and then with its view."""
    return rows.row * 2**31 + rows.view


def _contradiction(rows: Rows) -> str:
    """What of the rows' numbers cannot be, empty if nothing.

    The rule of sequences is held here, on the way in and out: L tokens have L - 1 next-token targets.
    """
    if (rows.row < 0).any():
        return "a row ordinal is negative"
    if (rows.view < 0).any() or (rows.view >= rows.views).any():
        return "a view is not one of its record's views"
    if (rows.targets < 0).any():
        return "a row has a negative number of targets"
    tokens = rows.inputs.get(TOKENS)
    if tokens is None or all(head.positions == "single" for head in rows.spec.heads):
        return ""
    lengths = tokens.lengths if isinstance(tokens, Ragged) else np.full(len(rows), tokens.shape[1])
    if (lengths != rows.targets.astype(np.int64) + 1).any():
        return "a row of L tokens has not L - 1 targets"
    return ""


def _agree(head: Head, encoded: Encoded, targets: int) -> None:
    """Raises ValueError unless the head's arrays are as many, and of the type, as its codec declares."""
    for field in head.codec.layout(head.size):
        name, array = f"{head.name}.{field.name}", encoded[field.name]
        items = targets
        if field.counted_by is not None:
            items = int(encoded[field.counted_by].sum(dtype=np.int64))
        stored = f"{field.dtype} items of shape {field.shape}"
        fits = array.dtype == np.dtype(field.dtype) and array.shape[1:] == field.shape
        _require(fits, f"{name} has {array.dtype.str} items of shape {array.shape[1:]}, not {stored}")
        _require(len(array) == items, f"{name} has {len(array)} items, counted are {items}")


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise CorruptShard(otherwise)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def _item_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    return np.dtype(dtype).itemsize * int(np.prod(shape, dtype=np.int64))


def _binary(
    name: str, values: Array, offsets: npt.NDArray[np.int64], dtype: str, shape: tuple[int, ...]
) -> pa.Array:
    """A binary column over the array's own memory; offsets count items along its first dimension."""
    _require(values.dtype == np.dtype(dtype), f"{name} has dtype {values.dtype.str}, not {dtype}")
    _require(values.shape[1:] == shape, f"an item of {name} has shape {values.shape[1:]}, not {shape}")
    _require(int(offsets[-1]) == len(values), f"{name} has {len(values)} items, counted are {offsets[-1]}")
    data = np.ascontiguousarray(values)
    bounds = offsets * _item_bytes(dtype, shape)
    _require(int(bounds[-1]) < 2**31, f"{name} has more than 2 GiB in one batch: write smaller batches")
    buffers = [None, pa.py_buffer(bounds.astype(np.int32)), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.binary(), len(offsets) - 1, buffers)


def _flat(
    name: str, column: pa.Array, dtype: str, shape: tuple[int, ...]
) -> tuple[Array, npt.NDArray[np.int64]]:
    """The bytes of a binary column as one array [total, *shape], and the rows' offsets in it."""
    size, rows = _item_bytes(dtype, shape), len(column)
    _, bounds_buffer, data = column.buffers()
    if rows == 0:
        return np.zeros((0, *shape), dtype=dtype), np.zeros(1, dtype=np.int64)
    enough = bounds_buffer is not None and bounds_buffer.size >= 4 * (column.offset + rows + 1)
    _expect(enough, f"the offsets of {name} are cut off")
    bounds = np.frombuffer(bounds_buffer, np.int32, rows + 1, 4 * column.offset).astype(np.int64)
    rising = bounds[0] >= 0 and bool((np.diff(bounds) >= 0).all())
    _expect(rising, f"the offsets of {name} do not rise")
    held = 0 if data is None else data.size
    _expect(int(bounds[-1]) <= held, f"{name} is cut off")
    bounds, start = bounds - bounds[0], int(bounds[0])
    _expect(not (bounds % size).any(), f"a row of {name} is no multiple of {size} bytes")
    values = np.frombuffer(data or b"", dtype, int(bounds[-1]) // np.dtype(dtype).itemsize, start)
    return values.reshape(-1, *shape), bounds // size
