"""Rows of a shard laid out for taking batches: sparse targets decoded, all else as the codecs stored it.

Decoding sparse targets takes far longer than copying them, so it happens once a shard and not once a batch;
dense targets and vectors are smaller as stored, and quick to decode, and stay so. Knows rows and bytes,
nothing of shards, orders or tensors.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.targets.codecs.base import Array, Encoded, concatenate, count_dtype, id_dtype
from pipeline.targets.decoded import Ints, SparseTargets, Targets
from pipeline.targets.ragged import Ragged, offsets_of
from pipeline.targets.rows import Rows
from pipeline.targets.spec import Head, Spec

LAYOUT = 1
"""Of tables in a cache; those of another one are made again."""

NUMBERS = ("row", "view", "views", "targets")


@dataclass(frozen=True)
class Column:
    """Items by row. bounds None: values is [rows, …], each row alike. Else row r has the items
    bounds[r]:bounds[r + 1] of values, [items, …].
    """

    values: Array
    bounds: Ints | None = None

    @classmethod
    def of(cls, values: Array, bounds: Ints) -> Column:
        """Of rows that happen to be alike and not empty, one of the first kind."""
        lengths = np.diff(bounds)
        if len(lengths) and lengths[0] and bool((lengths == lengths[0]).all()):
            return cls(values.reshape(len(lengths), int(lengths[0]), *values.shape[1:]))
        return cls(values, bounds)

    def __len__(self) -> int:
        return len(self.values) if self.bounds is None else len(self.bounds) - 1

    def items(self) -> Array:
        """All rows' items, end to end, of rows that may have several."""
        if self.bounds is not None:
            return self.values
        return self.values.reshape(-1, *self.values.shape[2:])

    def ragged(self) -> Ragged:
        """The same by row, of rows that may have several."""
        if self.bounds is not None:
            return Ragged(self.values, self.bounds)
        return Ragged(self.items(), np.arange(len(self) + 1) * self.values.shape[1])

    def slice(self, start: int, stop: int) -> Column:
        """Consecutive rows, as views."""
        if self.bounds is None:
            return Column(self.values[start:stop])
        part = Ragged(self.values, self.bounds).slice(start, stop)
        return Column(part.values, part.offsets)

    @staticmethod
    def concatenate(parts: Sequence[Column]) -> Column:
        """All rows of the parts, end to end; a single part as it is."""
        if len(parts) == 1:
            return parts[0]
        if all(part.bounds is None for part in parts) and len({part.values.shape[1:] for part in parts}) == 1:
            return Column(np.concatenate([part.values for part in parts]))
        both = Ragged.concatenate([part.ragged() for part in parts])
        return Column(both.values, both.offsets)


@dataclass(frozen=True)
class Table:
    """Some rows. columns: "row", "view", "views" and "targets" as in `Rows`, "in.<input>", and by head
    "<head>.<field>": of a sparse head count, head_count (one a target), ids and weights (one an entry); of
    any other its codec's fields.
    """

    spec: Spec
    keys: Sequence[str]
    columns: Mapping[str, Column]

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def lengths(self) -> Ints:
        """int64 [rows], items of the first varying input; 1 if none varies."""
        for item in self.spec.inputs:
            if item.varies:
                return self.columns[f"in.{item.name}"].ragged().lengths
        return np.ones(len(self), dtype=np.int64)

    def rows(self) -> Rows:
        """The same as `Rows`, but that sparse heads are decoded: see `decode`."""
        inputs: dict[str, Array | Ragged] = {}
        for item in self.spec.inputs:
            column = self.columns[f"in.{item.name}"]
            inputs[item.name] = column.ragged() if item.varies else column.values
        heads: dict[str, Encoded] = {head.name: {} for head in self.spec.heads}
        for name, column in self.columns.items():
            head, _, field = name.rpartition(".")
            if head in heads:
                heads[head][field] = column.items()
        numbers = {name: self.columns[name].values for name in NUMBERS}
        return Rows(spec=self.spec, keys=self.keys, inputs=inputs, heads=heads, **numbers)

    def slice(self, start: int, stop: int) -> Table:
        """Consecutive rows, as views."""
        columns = {name: column.slice(start, stop) for name, column in self.columns.items()}
        return Table(self.spec, self.keys[start:stop], columns)

    @staticmethod
    def concatenate(parts: Sequence[Table]) -> Table:
        """All rows of at least one part, end to end; a single part as it is."""
        if len(parts) == 1:
            return parts[0]
        columns = {
            name: Column.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns
        }
        return Table(parts[0].spec, [key for part in parts for key in part.keys], columns)


def lay_out(rows: Rows) -> Table:
    """The same rows, sparse targets decoded."""
    columns = {name: Column(getattr(rows, name)) for name in NUMBERS}
    for name, stored in rows.inputs.items():
        columns[f"in.{name}"] = (
            Column.of(stored.values, stored.offsets) if isinstance(stored, Ragged) else Column(stored)
        )
    for head in rows.spec.heads:
        targets = offsets_of(rows.counts(head))
        if is_sparse(head):
            decoded = rows.decode(head.name)
            assert isinstance(decoded, SparseTargets)
            found, entries = sparse_columns(decoded), decoded.offsets[targets]
            bounds = {"count": targets, "head_count": targets, "ids": entries, "weights": entries}
        else:
            found, bounds = rows.heads[head.name], {}
            for field in head.codec.layout(head.size):
                counted = field.counted_by
                bounds[field.name] = targets if counted is None else offsets_of(found[counted])[targets]
        for name, array in found.items():
            columns[f"{head.name}.{name}"] = Column.of(array, bounds[name])
    return Table(rows.spec, rows.keys, columns)


def sparse_columns(decoded: SparseTargets) -> Encoded:
    """What a table keeps of sparse targets, in the smallest integers that hold it."""
    counts = np.diff(decoded.offsets)
    small = count_dtype(int(counts.max(initial=0)))
    return {
        "count": counts.astype(small),
        "head_count": decoded.head_counts.astype(small),
        "ids": decoded.ids.astype(id_dtype(decoded.size)),
        "weights": decoded.weights,
    }


def widened(spec: Spec) -> dict[str, npt.DTypeLike]:
    """Columns that batches hold in another dtype than tables do, and which; copying a row and converting it
    at a time takes less than one after the other.
    """
    return {f"{head.name}.ids": np.int64 for head in spec.heads if is_sparse(head)}


def decode(head: Head, found: Encoded) -> Targets:
    """The targets that a head's columns of a table, or of rows taken from it, stand for."""
    if not is_sparse(head):
        return head.codec.decode(found, head.size)
    return SparseTargets(
        ids=found["ids"].astype(np.int64, copy=False),
        weights=found["weights"],
        offsets=offsets_of(found["count"]),
        head_counts=found["head_count"],
        size=head.size,
    )


@functools.lru_cache(maxsize=64)
def is_sparse(head: Head) -> bool:
    """Whether the head's codec decodes to sparse targets."""
    return isinstance(
        head.codec.decode(concatenate([], head.codec.layout(head.size)), head.size), SparseTargets
    )


def to_arrow(table: Table) -> pa.RecordBatch:
    """One record batch over the table's own memory: a binary column for each of its columns."""
    arrays, fields = [pa.array(table.keys, pa.large_string())], [pa.field("keys", pa.large_string())]
    for name, column in table.columns.items():
        values = np.ascontiguousarray(column.values)
        items = np.arange(len(table) + 1) if column.bounds is None else column.bounds
        size = values.itemsize * int(np.prod(values.shape[1:], dtype=np.int64))
        buffers = [None, pa.py_buffer(items * size), pa.py_buffer(values)]
        arrays.append(pa.Array.from_buffers(pa.large_binary(), len(table), buffers))
        described = [values.dtype.str, values.shape[1:], column.bounds is not None]
        fields.append(pa.field(name, pa.large_binary(), metadata={"array": json.dumps(described)}))
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


def from_arrow(spec: Spec, batch: pa.RecordBatch) -> Table:
    """The table again, views on the batch's buffers. Raises ValueError for what is no table."""
    columns: dict[str, Column] = {}
    for field, array in zip(batch.schema, batch.columns, strict=True):
        if field.name == "keys":
            continue
        dtype, shape, varies = json.loads((field.metadata or {})[b"array"])
        _, bounds, data = array.buffers()
        values: Array = np.frombuffer(data or b"", dtype).reshape(-1, *shape)
        size = values.itemsize * int(np.prod(shape, dtype=np.int64))
        offsets = np.frombuffer(bounds, np.int64, len(array) + 1) // size
        if varies:
            columns[field.name] = Column(values[: offsets[-1]], offsets)
        else:
            columns[field.name] = Column(values[: len(array)])
    return Table(spec, batch.column("keys").to_pylist(), columns)
