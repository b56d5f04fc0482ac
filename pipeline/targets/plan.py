"""The plan as Parquet: which units a corpus was cut into. A million of them stream; none need memory.

It knows one generation's file. Which generations there are, and who may add one, is the store's.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.targets.errors import StorageError
from pipeline.targets.parquet_file import parquet_file
from pipeline.targets.unit import Slice, Unit

_SLICE = {
    "url": pa.string(),
    "start": pa.int64(),
    "stop": pa.int64(),
    "size": pa.int64(),
    "fingerprint": pa.string(),
}
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("slices", pa.list_(pa.struct(list(_SLICE.items()))), nullable=False),
    ]
)
GROUP_SLICES = 2**15
"""Slices (or units) of a row group, which is what writing and reading hold at once."""


def plan_name(generation: int) -> str:
    """Generations count from 1."""
    return f"plan/{generation:06d}.parquet"


def generation_of(name: str) -> int:
    """The number in a generation's name, 0 for any other name."""
    found = re.fullmatch(r"plan/([0-9]{6})\.parquet", name)
    return int(found[1]) if found else 0


def encode(units: Iterable[tuple[str, Unit]], corpus: Mapping[str, Any]) -> tuple[bytes, int]:
    """The file of a generation, and how many units it holds. units: with their ids."""
    sink, count = io.BytesIO(), 0
    schema = SCHEMA.with_metadata({"decant.corpus": json.dumps(corpus, sort_keys=True)})
    with pq.ParquetWriter(sink, schema, compression="zstd", write_page_checksum=True) as writer:
        for group in _groups(units):
            count += len(group)
            slices = [item for _, unit in group for item in unit.slices]
            offsets = [0]
            for _, unit in group:
                offsets.append(offsets[-1] + len(unit.slices))
            parts = [pa.array([getattr(s, name) for s in slices], kind) for name, kind in _SLICE.items()]
            columns = [
                pa.array([name for name, _ in group], pa.string()),
                pa.array([unit.size_bytes for _, unit in group], pa.int64()),
                pa.ListArray.from_arrays(
                    pa.array(offsets, pa.int32()), pa.StructArray.from_arrays(parts, list(_SLICE))
                ),
            ]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
    return sink.getvalue(), count


def _groups(units: Iterable[tuple[str, Unit]]) -> Iterator[list[tuple[str, Unit]]]:
    group: list[tuple[str, Unit]] = []
    slices = 0
    for name, unit in units:
        group.append((name, unit))
        slices += 1 + len(unit.slices)
        if slices >= GROUP_SLICES:
            yield group
            group, slices = [], 0
    if group:
        yield group


class PlanFile:
    """A generation, open for reading. Raises StorageError, naming it, when it does not decode."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._name = name
        try:
            self._file = parquet_file(file)
            if not self._file.schema_arrow.equals(SCHEMA):
                raise ValueError("its columns are not a plan's")
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._broken(error) from error

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def ids(self) -> Iterator[str]:
        """The units' ids, in order."""
        for group in self.ids_by_group():
            yield from group

    def ids_by_group(self) -> Iterator[list[str]]:
        """The ids of each row group."""
        for group in range(self._file.num_row_groups):
            yield self._read(group, ["id"]).column("id").to_pylist()

    def units(self) -> Iterator[tuple[str, Unit]]:
        """The units with their ids, in order."""
        for group in range(self._file.num_row_groups):
            yield from units_of(self.group(group))

    def group(self, number: int) -> pa.RecordBatch:
        """The rows of a row group, whose units `units_of` gives."""
        (batch,) = self._read(number, None).combine_chunks().to_batches()
        return batch

    def _read(self, group: int, columns: list[str] | None) -> pa.Table:
        try:
            return self._file.read_row_group(group, columns, use_threads=False)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> StorageError:
        return StorageError(f"the plan {self._name} is broken ({error}): remove it and plan again")


def units_of(batch: pa.RecordBatch) -> Iterator[tuple[str, Unit]]:
    """Rows of a plan as units with their ids."""
    nested = batch.column("slices")
    bounds = nested.offsets.to_pylist()
    first = bounds[0] if bounds else 0
    slices = [
        Slice(*values) for values in zip(*(p.to_pylist() for p in nested.flatten().flatten()), strict=True)
    ]
    ids, sizes = batch.column("id").to_pylist(), batch.column("size_bytes").to_pylist()
    for name, size, start, stop in zip(ids, sizes, bounds, bounds[1:], strict=False):
        yield name, Unit(tuple(slices[start - first : stop - first]), size)
