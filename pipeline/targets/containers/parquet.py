"""The Parquet container: record batches of `Spec.schema()` to one file, and back.

It knows Arrow and Parquet; what the columns mean and where the file lies it does not know. Equal rows give
equal bytes, however they are cut into batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.targets.containers.base import BATCH_BYTES, Blocks, check
from pipeline.targets.errors import CorruptShard
from pipeline.targets.parquet_file import parquet_file
from pipeline.targets.spec import Spec


class Writer:
    """Streams record batches into a Parquet file, a row group at a time."""

    def __init__(self, sink: BinaryIO, spec: Spec, batch_bytes: int = BATCH_BYTES) -> None:
        """batch_bytes: of a row group."""
        schema = spec.schema()
        self._blocks = Blocks(schema, batch_bytes)
        self._file = pq.ParquetWriter(
            sink,
            schema,
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
        self._flush(self._blocks.add(batch))

    def close(self) -> None:
        """Write what waits, and the footer. The sink stays open."""
        self._flush(self._blocks.rest())
        self._file.close()

    def _flush(self, groups: Iterator[pa.RecordBatch]) -> None:
        for group in groups:
            self._file.write_batch(group, row_group_size=max(1, group.num_rows))


def read(data: bytes, spec: Spec) -> Iterator[pa.RecordBatch]:
    """The record batches of a file, one a row group.

    Raises CorruptShard for what is no such file, SpecMismatch when it was written for another spec.
    """
    try:
        file = parquet_file(pa.BufferReader(data))
        schema = file.schema_arrow
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptShard(f"no readable Parquet file: {error}") from error
    metadata = (schema.metadata or {}).items()
    check({k.decode(errors="replace"): v.decode(errors="replace") for k, v in metadata}, spec)
    if not schema.equals(spec.schema()):
        raise CorruptShard("its columns are not those that the spec declares")
    for group in range(file.num_row_groups):
        try:
            table = file.read_row_group(group, use_threads=False)
            batches = table.combine_chunks().to_batches()
        except (pa.ArrowException, OSError, ValueError) as error:
            raise CorruptShard(f"row group {group} does not decode: {error}") from error
        yield from batches
