"""Nested lists of numbers, from Parquet and JSON Lines, as arrays: checked, for they come from anywhere.

It knows files of rows and cells; what a column means it does not know. A file that is broken as a whole is
an error, a cell that is broken is `BadCell`, the reason for which its row goes to quarantine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.files import cut
from pipeline.corpus.jsonl import BOM, compression, decompressed, lines
from pipeline.corpus.parquet import parquet
from pipeline.interchange.base import UNIT_BYTES
from pipeline.interchange.source import Source
from pipeline.targets.codecs.base import Array
from pipeline.targets.errors import ConfigError, CorpusUnreadable
from pipeline.targets.unit import Slice, Unit

BATCH_ROWS = 8
"""Parquet rows decoded at once: one may be megabytes."""

LINE_BYTES = 256 << 20
"""A longer line of JSON is no row but a mistake."""

Cells = Mapping[str, Any]


class BadCell(ValueError):
    """A cell that is not what its column should hold. The message is a reason, for quarantine."""


def parquet_units(source: Source, name: str) -> Iterator[Unit]:
    """A file in row ranges of about UNIT_BYTES, along its row groups. Raises CorpusUnreadable."""
    with _table(source, name) as table:
        first = 0
        for number in range(table.num_row_groups):
            group = table.metadata.row_group(number)
            most = max(1, group.num_rows * UNIT_BYTES // max(1, group.total_byte_size))
            for start, stop in cut(group.num_rows, most):
                part = source.slice(name, first + start, first + stop)
                yield Unit((part,), group.total_byte_size * (stop - start) // group.num_rows)
            first += group.num_rows


@contextmanager
def _table(source: Source, name: str) -> Iterator[pq.ParquetFile]:
    """A Parquet file of the source. Raises CorpusUnreadable when it, or a page of it, is broken."""
    try:
        with source.open(name) as file, parquet(source.where(name), file) as table:
            yield table
    except (ValueError, OverflowError) as error:  # names that are no UTF-8, counts that cannot be
        raise CorpusUnreadable(f"{source.where(name)} is broken ({error}): copy it again") from error


def parquet_columns(source: Source, name: str, columns: Mapping[str, int]) -> frozenset[str]:
    """The columns of a file. columns: how deep the lists of those that matter are, if they are there.

    Raises ConfigError when one of them holds something else than lists of numbers of that depth.
    """
    with _table(source, name) as table:
        schema = table.schema_arrow
    for column, depth in columns.items():
        if column not in schema.names:
            continue
        kind = schema.field(column).type
        for _ in range(depth):
            kind = kind.value_type if _is_list(kind) else None
            if kind is None:
                break
        if kind is None or not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            what = "lists of lists of numbers" if depth == 2 else "lists of numbers"
            raise ConfigError(
                f"column {column!r} of {source.where(name)} is of type {schema.field(column).type}, "
                f"not {what}"
            )
    return frozenset(schema.names)


def parquet_rows(source: Source, part: Slice, columns: Sequence[str]) -> Iterator[tuple[int, Cells]]:
    """The rows of a slice, with their number in the file and the columns' cells."""
    with _table(source, part.url) as table:
        first = 0
        for group in range(table.num_row_groups):
            stop = first + table.metadata.row_group(group).num_rows
            if first < part.stop and part.start < stop:
                yield from _group_rows(table, group, first, part, columns)
            first = stop


def _group_rows(
    table: pq.ParquetFile, group: int, first: int, part: Slice, columns: Sequence[str]
) -> Iterator[tuple[int, Cells]]:
    for batch in table.iter_batches(BATCH_ROWS, row_groups=[group], columns=list(columns), use_threads=False):
        if first >= part.stop:
            return
        for i in range(max(part.start - first, 0), min(part.stop - first, len(batch))):
            yield first + i, {name: batch.column(name)[i].values for name in columns}
        first += len(batch)


def json_units(source: Source, name: str) -> Iterator[Unit]:
    """A plain file in byte ranges of about UNIT_BYTES, a compressed one whole."""
    size = source.files[name].size
    if compression(name):
        yield Unit((source.slice(name, 0, size),), size)
        return
    with source.open(name) as file:
        if size:
            file.seek(size - 1)
        if size and file.read(1) != b"\n":
            raise CorpusUnreadable(
                f"{source.where(name)} ends in the middle of a line, as if it were still being written: "
                "wait for it, or end it with a newline if it is whole"
            )
    for start, stop in cut(size, UNIT_BYTES):
        yield Unit((source.slice(name, start, stop),), stop - start)


def json_rows(source: Source, part: Slice) -> Iterator[tuple[int, Cells | str]]:
    """The objects that begin in a slice, each with its byte offset (in a compressed file its line number).

    A line that is no object comes as the reason. Raises CorpusUnreadable when it does not decompress.
    """
    with source.open(part.url) as file:
        if compression(part.url):
            try:
                stream = decompressed(part.url, file)
                for number, (line, _) in enumerate(lines(stream, LINE_BYTES)):
                    if line is None or line.strip() not in (b"", BOM):
                        yield number, _object(line)
            except (pa.ArrowException, OSError) as error:
                raise CorpusUnreadable(
                    f"{source.where(part.url)} does not decompress ({error}): copy it again"
                ) from error
            return
        start = part.start
        if start:  # a line that begins at start follows a newline at start - 1
            file.seek(start - 1)
            start += next((length for _, length in lines(file, LINE_BYTES)), 1) - 1
        for line, length in lines(file, LINE_BYTES):
            if start >= part.stop:
                return
            if line is None or line.strip() not in (b"", BOM):
                yield start, _object(line)
            start += length


def _object(line: bytes | None) -> Cells | str:
    if line is None:
        return f"a line of more than {LINE_BYTES} bytes"
    try:
        found = json.loads(line.removeprefix(BOM))
    except (ValueError, RecursionError) as error:
        return f"no JSON: {error}"
    return found if isinstance(found, dict) else f"a JSON {type(found).__name__} in place of an object"


def vector(cells: Cells, name: str) -> Array:
    """A cell that is a list of numbers, [n]. Raises BadCell."""
    values = _list(cells.get(name), name)
    if not len(values):
        return np.zeros(0, dtype=np.int64)
    return _numbers(values, name)


def whole_numbers(cells: Cells, name: str) -> npt.NDArray[np.int64]:
    """A cell that is a list of whole numbers below 2^63, int64 [n]. Raises BadCell."""
    return _whole(vector(cells, name), name)


def matrix(cells: Cells, name: str, fill: float) -> Array:
    """A cell that is a list of lists of numbers, [n, longest]; `fill` at the right of shorter ones.

    Raises BadCell.
    """
    outer = _list(cells.get(name), name)
    if not len(outer):
        return np.zeros((0, 0), dtype=np.int64)
    if not _is_list(outer.type) or outer.null_count:
        raise BadCell(f"{name} is no list of lists of numbers")
    lengths = outer.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    values = _numbers(outer.flatten(), name)
    width = int(lengths.max())
    if (lengths == width).all():
        return values.reshape(len(lengths), width)
    if width * len(lengths) > 64 * len(values) + 2**20:
        raise BadCell(f"{name} has a list of {width} numbers among much shorter ones")
    out = np.full((len(lengths), width), fill, dtype=np.result_type(values.dtype, np.min_scalar_type(fill)))
    out[np.arange(width) < lengths[:, None]] = values
    return out


def whole_matrix(cells: Cells, name: str, fill: int) -> npt.NDArray[np.int64]:
    """`matrix` of whole numbers below 2^63, int64 [n, longest]. Raises BadCell."""
    return _whole(matrix(cells, name, fill), name)


def _whole(values: Array, name: str) -> npt.NDArray[np.int64]:
    if values.dtype.kind == "f":
        if not bool((np.isfinite(values) & (values == np.trunc(values)) & (np.abs(values) < 2.0**53)).all()):
            raise BadCell(f"{name} has a number that is not whole")
    elif values.dtype.kind == "u" and bool((values > np.iinfo(np.int64).max).any()):
        raise BadCell(f"{name} has a number above 2^63")
    return values.astype(np.int64)


def _list(value: Any, name: str) -> pa.Array:
    """A cell as an Arrow array; a Parquet cell is one already."""
    if value is None:
        raise BadCell(f"{name} is missing")
    if isinstance(value, pa.Array):
        return value
    if not isinstance(value, list):
        raise BadCell(f"{name} is a JSON {type(value).__name__}, no list")
    try:
        return pa.array(value)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise BadCell(f"{name} is no list of numbers: {error}") from error


def _numbers(values: pa.Array, name: str) -> Array:
    if values.null_count or not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        raise BadCell(f"{name} holds something else than numbers")
    found: Array = values.to_numpy(zero_copy_only=False)
    return found


def _is_list(kind: pa.DataType) -> bool:
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(kind) for test in tests)
