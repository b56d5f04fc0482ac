"""Parquet: some columns, cut into row ranges along the row groups.

It reads the needed columns of the needed row groups and nothing else. A unit that begins inside a row group
decodes the group from its start: row groups of a few thousand rows cost nothing, one of a million costs
each of its units half of it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import BinaryIO, ClassVar, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import PositiveInt

from pipeline.corpus.base import NOTHING_PLANNED, Read
from pipeline.corpus.columns import ColumnFiles
from pipeline.corpus.files import cut, pack, part_of
from pipeline.targets.errors import CorpusUnreadable
from pipeline.targets.parquet_file import parquet_file
from pipeline.targets.unit import Slice, Unit

BATCH_ROWS, BATCH_BYTES = 256, 16 << 20
"""What is decoded at a time: so many rows, or fewer of more bytes."""


class ParquetFiles(ColumnFiles):
    """Parquet files; a record is {"text": str}, or has the fields of `columns`.

    Its key is `<file>#<row>`, or the key column.
    """

    usual: ClassVar[tuple[str, ...]] = ("*.parquet", "*.pq")

    kind: Literal["parquet"] = "parquet"
    """Parquet."""

    unit_rows: PositiveInt = 2048
    """Rows that make a unit, at most."""

    def units(self, planned: Mapping[str, str] = NOTHING_PLANNED) -> Iterator[Unit]:
        return pack(self._parts(planned), self.unit_rows)

    def _parts(self, planned: Mapping[str, str]) -> Iterator[tuple[Slice, int, int]]:
        for file in self.new_files(planned):
            with self.peek(file) as opened, parquet(file.url, opened) as table:
                self.check_columns(file.url, table.schema_arrow)
                first = 0
                for group in range(table.num_row_groups):
                    described = table.metadata.row_group(group)
                    for start, stop in cut(described.num_rows, self.unit_rows):
                        rows = stop - start
                        size = described.total_byte_size * rows // described.num_rows
                        yield part_of(file, first + start, first + stop), rows, size
                    first += described.num_rows

    def records(self, unit: Unit) -> Generator[Read, None, None]:
        row = 0
        for part in unit.slices:
            name = self.name(part)
            with self.open(part) as file, parquet(part.url, file) as table:
                self.check_columns(part.url, table.schema_arrow)
                texts = self.texts(table.schema_arrow)
                for first, batch in self._batches(table, part):
                    start, stop = max(part.start - first, 0), min(part.stop - first, len(batch))
                    yield from self.rows(batch, range(start, stop), row, f"{name}#", first, texts)
                    row += stop - start

    def _batches(self, table: pq.ParquetFile, part: Slice) -> Iterator[tuple[int, pa.RecordBatch]]:
        """The batches that rows of the slice lie in, each with the number of its first row."""
        first = 0
        for group in range(table.num_row_groups):
            stop = first + table.metadata.row_group(group).num_rows
            if first < part.stop and part.start < stop:
                at = first
                described = table.metadata.row_group(group)
                row_bytes = max(1, described.total_byte_size // described.num_rows)
                rows = max(1, min(BATCH_ROWS, BATCH_BYTES // row_bytes))
                batches = table.iter_batches(rows, row_groups=[group], columns=self.wanted, use_threads=False)
                for batch in batches:
                    if at >= part.stop:
                        break
                    if at + len(batch) > part.start:
                        yield at, batch
                    at += len(batch)
            first = stop


@contextmanager
def parquet(url: str, file: BinaryIO) -> Iterator[pq.ParquetFile]:
    """The file's reader. Raises CorpusUnreadable naming the file when it, or a page of it, is broken."""
    try:
        with parquet_file(file) as table:
            yield table
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise CorpusUnreadable(
            f"{url} is broken or no Parquet ({reason}): copy it again, or exclude it"
        ) from error
