"""Parquet: a text column, cut into row ranges along the row groups.

It reads the needed columns of the needed row groups and nothing else. A unit that begins inside a row group
decodes the group from its start: row groups of a few thousand rows cost nothing, one of a million costs
each of its units half of it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, ClassVar, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import PositiveInt

from pipeline.corpus.base import NOTHING_PLANNED, Read, Record
from pipeline.corpus.files import FileSource, cut, pack, part_of
from pipeline.targets.errors import ConfigError, CorpusUnreadable
from pipeline.targets.unit import Quarantined, Slice, Unit

BATCH_ROWS = 256


class ParquetFiles(FileSource):
    """Parquet files; a record is {"text": str}, its key `<file>#<row>` or the key column."""

    usual: ClassVar[tuple[str, ...]] = ("*.parquet", "*.pq")

    kind: Literal["parquet"] = "parquet"
    """Parquet."""

    text_column: str = "text"
    """The column of strings (or UTF-8 bytes) that holds the text."""

    key_column: str | None = None
    """A column of strings or integers, unique in the corpus, to be the record's key."""

    unit_rows: PositiveInt = 2048
    """Rows that make a unit, at most."""

    def units(self, planned: Mapping[str, str] = NOTHING_PLANNED) -> Iterator[Unit]:
        return pack(self._parts(planned), self.unit_rows)

    def _parts(self, planned: Mapping[str, str]) -> Iterator[tuple[Slice, int, int]]:
        for file in self.new_files(planned):
            with self.peek(file) as opened, parquet(file.url, opened) as table:
                self._check_columns(file.url, table.schema_arrow)
                first = 0
                for group in range(table.num_row_groups):
                    described = table.metadata.row_group(group)
                    for start, stop in cut(described.num_rows, self.unit_rows):
                        rows = stop - start
                        size = described.total_byte_size * rows // described.num_rows
                        yield part_of(file, first + start, first + stop), rows, size
                    first += described.num_rows

    def _check_columns(self, url: str, schema: pa.Schema) -> None:
        for column, test in ((self.text_column, is_text), (self.key_column, is_key)):
            if column is None:
                continue
            if column not in schema.names:
                raise ConfigError(f"{url} has no column {column!r}, it has {schema.names}")
            if not test(schema.field(column).type):
                raise ConfigError(
                    f"column {column!r} of {url} is of type {schema.field(column).type}, which is no "
                    f"{'text' if test is is_text else 'key'}"
                )

    def records(self, unit: Unit) -> Generator[Read, None, None]:
        row = 0
        for part in unit.slices:
            name = self.name(part.url)
            with self.open(part) as file, parquet(part.url, file) as table:
                self._check_columns(part.url, table.schema_arrow)
                for index, text, key in self._values(table, part):
                    yield self._record(f"{name}#{index}", row, text, key)
                    row += 1

    def _values(self, table: pq.ParquetFile, part: Slice) -> Iterator[tuple[int, Any, Any]]:
        """Row number, text as bytes, and key as bytes or integer, of the slice's rows."""
        columns = [self.text_column] + ([self.key_column] if self.key_column else [])
        first = 0
        for group in range(table.num_row_groups):
            stop = first + table.metadata.row_group(group).num_rows
            if first < part.stop and part.start < stop:
                at = first
                for batch in table.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns):
                    if at >= part.stop:
                        break
                    if at + len(batch) > part.start:
                        texts = as_bytes(batch.column(self.text_column))
                        keys = self._keys(batch) if self.key_column else None
                        for i in range(max(part.start - at, 0), min(part.stop - at, len(batch))):
                            yield at + i, texts[i].as_py(), keys[i].as_py() if keys is not None else None
                    at += len(batch)
            first = stop

    def _keys(self, batch: pa.RecordBatch) -> pa.Array:
        column = batch.column(self.key_column)
        return column if pa.types.is_integer(column.type) else as_bytes(column)

    def _record(self, position: str, row: int, text: Any, key: Any) -> Record | Quarantined:
        values: dict[str, Any] = {self.text_column: text}
        if self.key_column:
            values[self.key_column] = key
        for column, value in values.items():
            if value is None:
                reason = f"{position}: no value in {column!r}"
                return Quarantined(position, row, None, "undecodable", reason)
            try:
                values[column] = value.decode() if isinstance(value, bytes) else value
            except UnicodeDecodeError as error:
                reason = f"{position}: no UTF-8 at byte {error.start} of {column!r}"
                return Quarantined(position, row, None, "undecodable", reason)
        key = str(values[self.key_column]) if self.key_column else position
        return Record(key, row, {"text": values[self.text_column]})


@contextmanager
def parquet(url: str, file: BinaryIO) -> Iterator[pq.ParquetFile]:
    """The file's reader. Raises CorpusUnreadable naming the file when it, or a page of it, is broken."""
    try:
        with pq.ParquetFile(file) as table:
            yield table
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise CorpusUnreadable(
            f"{url} is broken or no Parquet ({reason}): copy it again, or exclude it"
        ) from error


def as_bytes(column: pa.Array) -> pa.Array:
    """A text column as binary, so that bytes which are no UTF-8 spoil their own record alone."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(pa.large_binary())


def is_text(kind: pa.DataType) -> bool:
    """Strings, bytes, a dictionary of them, or nulls alone."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return pa.types.is_null(kind) or any(test(kind) for test in tests)


def is_key(kind: pa.DataType) -> bool:
    """Strings, integers, or nulls alone."""
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_null)
    return any(test(kind) for test in tests)
