"""The Zarr container: a Zarr v3 group in an uncompressed zip, which `zarr.open_group` opens as it is.

It knows which arrays the columns are; how arrays are stored is in `zarr_zip`, what the columns mean and where
the file lies it does not know. Every column is an array of its own type, in zstd chunks gathered into Zarr's
shards. Where a row may have any number of items, `offsets/<column>` says where those of each row begin.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.targets.containers.base import BATCH_BYTES, Blocks, check, content, typed_columns
from pipeline.targets.containers.zarr_zip import (
    ArrayType,
    GrowingArray,
    StoredArray,
    ZipReader,
    ZipWriter,
    expect,
)
from pipeline.targets.ragged import Array, offsets_of
from pipeline.targets.spec import Spec

BLOCK_ROWS = 2**12
"""Rows whose numbers and offsets a reader holds at once."""

_NUMBERS = {"row": "<i8", "view": "<i4", "views": "<i4", "targets": "<i4"}


class _Layout:
    """Which arrays the rows of a spec are."""

    def __init__(self, spec: Spec) -> None:
        columns = typed_columns(spec)
        self.per_target = {column.name for column in columns if column.items == "target"}
        self.numbers = [ArrayType(name, dtype, ()) for name, dtype in _NUMBERS.items()]
        self.values = [ArrayType("key", "|u1", ())]
        self.values += [ArrayType.of(c.name, c.dtype, c.shape) for c in columns]
        self.offsets = [
            ArrayType(f"offsets/{name}", "<i8", ())
            for name in ("key", *(column.name for column in columns if column.items == "any"))
        ]
        self.attributes = {k.decode(): v.decode() for k, v in spec.schema().metadata.items()}

    @property
    def arrays(self) -> list[ArrayType]:
        """All of them."""
        return [*self.numbers, *self.values, *self.offsets]


class Writer:
    """Streams record batches into a zip: full chunks are compressed, full shards leave memory."""

    def __init__(self, sink: BinaryIO, spec: Spec, batch_bytes: int = BATCH_BYTES) -> None:
        self._layout = _Layout(spec)
        self._blocks = Blocks(spec.schema(), batch_bytes)
        self._zip = ZipWriter(sink)
        self._growing = {array.name: GrowingArray(array, self._zip) for array in self._layout.arrays}
        for array in self._layout.offsets:
            self._growing[array.name].append(np.zeros(1, dtype=np.int64))

    def write(self, batch: pa.RecordBatch) -> None:
        """Append rows."""
        for block in self._blocks.add(batch):
            self._append(block)

    def close(self) -> None:
        """Write what waits, the metadata, and the zip's directory. The sink stays open."""
        for block in self._blocks.rest():
            self._append(block)
        for growing in self._growing.values():
            growing.close()
        self._zip.put_group("offsets/", {})
        self._zip.put_group("", self._layout.attributes)
        self._zip.close()

    def _append(self, block: pa.RecordBatch) -> None:
        for array in self._layout.numbers:
            self._growing[array.name].append(block.column(array.name).to_numpy())
        for array in self._layout.values:
            data, bounds = content(block.column(array.name))
            growing = self._growing[array.name]
            before = growing.items
            growing.append(data.view(array.dtype).reshape(-1, *array.shape))
            if offsets := self._growing.get(f"offsets/{array.name}"):
                offsets.append(before + bounds[1:] // array.item_bytes)


def read(data: bytes, spec: Spec) -> Iterator[pa.RecordBatch]:
    """The record batches of a file, each of about two MiB.

    Raises CorruptShard for what is no such file, naming the array, and SpecMismatch when it was written for
    another spec.
    """
    layout, schema = _Layout(spec), spec.schema()
    stored = _open(data, spec, layout)
    kinds = [schema.field(array.name).type for array in layout.values]
    at = dict.fromkeys((array.name for array in layout.values), 0)
    for start in range(0, stored["row"].items, BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, stored["row"].items)
        numbers = {array.name: stored[array.name].read(start, stop) for array in layout.numbers}
        expect(bool((numbers["targets"] >= 0).all()), "a row has a negative number of targets")
        bounds = _bounds(layout, stored, at, start, numbers["targets"])
        at = {name: int(found[-1]) for name, found in bounds.items()}
        sizes = sum(np.diff(bounds[array.name]) * array.item_bytes for array in layout.values)
        for first, last in _cuts(np.asarray(sizes)):
            key, *columns = (
                _binary(stored[array.name], bounds[array.name][first : last + 1], kind)
                for array, kind in zip(layout.values, kinds, strict=True)
            )
            plain = [pa.array(numbers[array.name][first:last]) for array in layout.numbers]
            yield pa.RecordBatch.from_arrays([key, *plain, *columns], schema=schema)
    for name, end in at.items():
        expect(end == stored[name].items, f"{name} is longer than its rows say")


def _open(data: bytes, spec: Spec, layout: _Layout) -> dict[str, StoredArray]:
    """The arrays of a zip that holds them and nothing else."""
    members = ZipReader(data)
    check(members.attributes(""), spec)
    members.attributes("offsets/")
    stored = {array.name: StoredArray(array, members) for array in layout.arrays}
    members.refuse_others()
    rows = stored["row"].items
    for array in layout.numbers:
        expect(stored[array.name].items == rows, f"{array.name} has not {rows} rows")
    for array in layout.offsets:
        expect(stored[array.name].items == rows + 1, f"{array.name} has not {rows + 1} items")
    return stored


def _bounds(
    layout: _Layout, stored: Mapping[str, StoredArray], at: Mapping[str, int], start: int, targets: Array
) -> dict[str, npt.NDArray[np.int64]]:
    """Where the items of some rows begin and the last ones end, for each array of values.

    at: where those of the first row must begin. start: the first row; targets: of each.
    """
    bounds = {}
    for array in layout.values:
        name = array.name
        if (offsets := stored.get(f"offsets/{name}")) is not None:
            found = offsets.read(start, start + len(targets) + 1)
        elif name in layout.per_target:
            found = at[name] + offsets_of(targets)
        else:
            found = np.arange(start, start + len(targets) + 1)
        rising = found[0] == at[name] and bool((found[1:] >= found[:-1]).all())
        expect(rising, f"the offsets of {name} do not rise from 0")
        expect(int(found[-1]) <= stored[name].items, f"{name} is shorter than its rows say")
        bounds[name] = found
    return bounds


def _binary(stored: StoredArray, bounds: npt.NDArray[np.int64], kind: pa.DataType) -> pa.Array:
    """A binary or string column of the rows whose items begin there."""
    ends = (bounds - bounds[0]) * stored.array.item_bytes
    expect(int(ends[-1]) < 2**31, f"a row of {stored.array.name} has more than 2 GiB")
    data = np.ascontiguousarray(stored.read(int(bounds[0]), int(bounds[-1])))
    buffers = [None, pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(data)]
    return pa.Array.from_buffers(kind, len(ends) - 1, buffers)


def _cuts(sizes: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Ranges of rows, each of at least one row and, where that is possible, of at most BATCH_BYTES."""
    ends, start = np.cumsum(sizes), 0
    while start < len(ends):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + BATCH_BYTES, side="right")))
        yield start, stop
        start = stop
