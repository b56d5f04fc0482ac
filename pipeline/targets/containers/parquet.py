"""The Parquet container: record batches of `Spec.schema()` to one file, and back.

It knows Arrow and Parquet; what the columns mean and where the file lies it does not know. Equal rows give
equal bytes, however they are cut into batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.targets.errors import CorruptShard, SpecMismatch
from pipeline.targets.spec import Spec

ROW_GROUP_BYTES = 2 * 2**20
"""Encoded bytes after which a row group ends: what a writer holds, and a reader decodes at once."""


class Writer:
    """Streams record batches into a Parquet file, a row group at a time."""

    def __init__(self, sink: BinaryIO, spec: Spec, row_group_bytes: int = ROW_GROUP_BYTES) -> None:
        self._schema = spec.schema()
        self._limit = row_group_bytes
        self._waiting: list[pa.RecordBatch] = []
        self._bytes = 0
        self._file = pq.ParquetWriter(
            sink,
            self._schema,
            compression="zstd",
            use_dictionary=["key", "view", "views", "targets"],
            column_encoding={"row": "DELTA_BINARY_PACKED"},
            write_statistics=["row"],
            write_page_checksum=True,
            data_page_size=2**20,
            store_schema=True,
        )

    def write(self, batch: pa.RecordBatch) -> None:
        """Append rows. A row group ends with the row that brings it to its size, in whatever batch."""
        ends = np.cumsum(_row_bytes(batch))
        start, before = 0, 0
        while len(ends) and self._bytes + int(ends[-1]) - before >= self._limit:
            stop = int(np.searchsorted(ends, self._limit - self._bytes + before)) + 1
            self._waiting.append(batch.slice(start, stop - start))
            self._flush()
            start, before = stop, int(ends[stop - 1])
            if start == len(ends):
                return
        if start < len(ends):
            self._waiting.append(batch.slice(start))
            self._bytes += int(ends[-1]) - before

    def close(self) -> None:
        """Write what waits, and the footer. The sink stays open."""
        if self._waiting:
            self._flush()
        self._file.close()

    def _flush(self) -> None:
        # One chunk a column, so that the pages do not show how the rows came.
        table = pa.Table.from_batches(self._waiting, self._schema).combine_chunks()
        self._file.write_table(table, row_group_size=max(1, table.num_rows))
        self._waiting, self._bytes = [], 0


def read(data: bytes, spec: Spec) -> Iterator[pa.RecordBatch]:
    """The record batches of a file, one a row group.

    Raises CorruptShard for what is no such file, SpecMismatch when it was written for another spec.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        schema = file.schema_arrow
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptShard(f"no readable Parquet file: {error}") from error
    declared = (schema.metadata or {}).get(b"decant.spec_fingerprint", b"").decode(errors="replace")
    if declared != spec.fingerprint:
        raise SpecMismatch(f"written for the spec {declared or 'of nobody'}, not for {spec.fingerprint}")
    if not schema.equals(spec.schema()):
        raise CorruptShard("its columns are not those that the spec declares")
    for group in range(file.num_row_groups):
        try:
            table = file.read_row_group(group, use_threads=False)
            batches = table.combine_chunks().to_batches()
        except (pa.ArrowException, OSError, ValueError) as error:
            raise CorruptShard(f"row group {group} does not decode: {error}") from error
        yield from batches


def _row_bytes(batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
    """Encoded bytes of each row: its variable parts, and 20 of fixed ones."""
    total = np.full(batch.num_rows, 20, dtype=np.int64)
    for column in batch.columns:
        if column.type in (pa.binary(), pa.string()) and len(column):
            bounds = np.frombuffer(column.buffers()[1], dtype=np.int32)
            total += np.diff(bounds[column.offset : column.offset + len(column) + 1])
    return total
