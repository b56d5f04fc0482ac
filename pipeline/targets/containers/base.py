"""What all containers have in common: how a column is typed, where a stream of rows is cut, whose a shard is.

A container writes record batches of `Spec.schema()` to one file and reads them back. What the columns mean
and where the file lies it does not know.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.targets.errors import SpecMismatch
from pipeline.targets.spec import Spec

BATCH_BYTES = 2 * 2**20
"""Encoded bytes after which a batch ends: what a writer holds, and a reader decodes at once."""


BROKEN_ZIP = (
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
    ValueError,
    KeyError,
    TypeError,
    EOFError,
    OSError,
    OverflowError,
    struct.error,
)
"""What zipfile and NumPy's npy raise of bytes that are none."""


class Writer(Protocol):
    """Streams record batches into a file. Equal rows give equal bytes, however they are cut into batches."""

    def write(self, batch: pa.RecordBatch) -> None:
        """Append rows."""
        ...

    def close(self) -> None:
        """Write what waits and what ends the file. The sink stays open."""
        ...


@dataclass(frozen=True)
class Typed:
    """What the bytes of a binary column are: items of `shape`, of a little-endian NumPy dtype.

    items: a row has one ("row"), one a target ("target"), or any number of them ("any").
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    items: Literal["row", "target", "any"]

    @property
    def item_bytes(self) -> int:
        """Bytes of one item."""
        return np.dtype(self.dtype).itemsize * int(np.prod(self.shape, dtype=np.int64))


def typed_columns(spec: Spec) -> tuple[Typed, ...]:
    """The binary columns of the spec's schema, in their order."""
    found = [
        Typed(f"in.{item.name}", item.dtype, item.item_shape, "any" if item.varies else "row")
        for item in spec.inputs
    ]
    for head in spec.heads:
        each: Literal["row", "target"] = "row" if head.positions == "single" else "target"
        found += [
            Typed(f"{head.name}.{c.name}", c.dtype, c.shape, each if c.per_target else "any")
            for c in head.codec.columns(head.size)
        ]
    return tuple(found)


def check(metadata: Mapping[str, str], spec: Spec) -> None:
    """Raises SpecMismatch unless a shard's metadata says that it was written for the spec."""
    for name, wanted in (
        ("spec_fingerprint", spec.fingerprint),
        ("format_version", str(spec.format_version)),
    ):
        found = metadata.get(f"decant.{name}")
        if found != wanted:
            what = "spec" if name == "spec_fingerprint" else "format version"
            raise SpecMismatch(f"written for the {what} {found or 'of nobody'}, not for {wanted}")


def content(column: pa.Array) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The bytes of a binary or string column end to end, and where those of each row begin, [rows + 1]."""
    _, bounds_buffer, data = column.buffers()
    if not len(column):
        return np.zeros(0, dtype=np.uint8), np.zeros(1, dtype=np.int64)
    bounds = np.frombuffer(bounds_buffer, np.int32, len(column) + 1, 4 * column.offset).astype(np.int64)
    held = np.frombuffer(data or b"", dtype=np.uint8)
    return held[bounds[0] : bounds[-1]], bounds - bounds[0]


class Blocks:
    """Cuts a stream of record batches anew, so that a file does not show how its rows came."""

    def __init__(self, schema: pa.Schema, limit: int) -> None:
        """limit: encoded bytes of a block, which ends with the row that brings it there."""
        self._schema, self._limit = schema, limit
        self._waiting: list[pa.RecordBatch] = []
        self._bytes = 0

    def add(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """The blocks that are full with these rows."""
        ends = np.cumsum(_row_bytes(batch))
        start, before = 0, 0
        while len(ends) and self._bytes + int(ends[-1]) - before >= self._limit:
            stop = int(np.searchsorted(ends, self._limit - self._bytes + before)) + 1
            self._waiting.append(batch.slice(start, stop - start))
            yield from self.rest()
            start, before = stop, int(ends[stop - 1])
            if start == len(ends):
                return
        if start < len(ends):
            self._waiting.append(batch.slice(start))
            self._bytes += int(ends[-1]) - before

    def rest(self) -> Iterator[pa.RecordBatch]:
        """What waits, if anything does, as one block."""
        if self._waiting:
            table = pa.Table.from_batches(self._waiting, self._schema).combine_chunks()
            self._waiting, self._bytes = [], 0
            yield from table.to_batches()


def _row_bytes(batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
    """Encoded bytes of each row: its variable parts, and 20 of fixed ones."""
    total = np.full(batch.num_rows, 20, dtype=np.int64)
    for column in batch.columns:
        if column.type in (pa.binary(), pa.string()):
            total += np.diff(content(column)[1])
    return total
