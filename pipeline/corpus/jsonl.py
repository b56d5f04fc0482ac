"""JSON Lines: one object a line, plain (cut by byte ranges), gzip or zstd (read as a stream).

It knows lines and JSON objects; a record is the text in one column, or the fields of several. Lines are read
with a bound, so no line, however long or however well compressed, fills the memory.
"""

from __future__ import annotations

import io
import json
from collections.abc import Generator, Iterator, Mapping
from typing import Any, BinaryIO, ClassVar, Literal

import pyarrow as pa
from pydantic import PositiveInt

from pipeline.corpus.base import NOTHING_PLANNED, Filtered, Read, Record
from pipeline.corpus.columns import ColumnFiles
from pipeline.corpus.files import cut, pack, part_of, whole
from pipeline.targets.errors import CorpusUnreadable
from pipeline.targets.unit import Quarantined, Slice, Unit

BOM = b"\xef\xbb\xbf"
MISSING = object()
RATIO = 4  # typical bytes of text per compressed byte: only the size of units hangs on it


class JsonLines(ColumnFiles):
    """JSON Lines files; a record is {"text": str}, or has the fields of `columns`: strings, numbers,
    booleans.

    Its key is `<file>@<byte offset>` in a plain file, `<file>#<line>` in a compressed one, or the key column.
    A record of a plain file belongs to the unit that its first byte lies in. Blank lines are no records.
    """

    usual: ClassVar[tuple[str, ...]] = tuple(
        f"*.{name}{suffix}" for name in ("jsonl", "ndjson") for suffix in ("", ".gz", ".zst")
    )

    kind: Literal["jsonl"] = "jsonl"
    """JSON Lines, plain or compressed (.gz, .zst)."""

    unit_bytes: PositiveInt = 8 << 20
    """Bytes of text that make a unit; a compressed file is never cut."""

    max_record_bytes: PositiveInt = 64 << 20
    """A longer line is quarantined, not held in memory."""

    def units(self, planned: Mapping[str, str] = NOTHING_PLANNED) -> Iterator[Unit]:
        return pack(self._parts(planned), self.unit_bytes)

    def _parts(self, planned: Mapping[str, str]) -> Iterator[tuple[Slice, int, int]]:
        for file in self.new_files(planned):
            if compression(file.url):
                yield whole(file), file.size * RATIO, file.size * RATIO
            else:
                for start, stop in cut(file.size, self.unit_bytes):
                    yield part_of(file, start, stop), stop - start, stop - start

    def records(self, unit: Unit) -> Generator[Read, None, None]:
        row = 0
        for part in unit.slices:
            name = self.name(part)
            with self.open(part) as file:
                if compression(part.url):
                    found = self._compressed(name, part, file)
                else:
                    found = self._lines(name, part, file)
                for position, line in found:
                    yield self._record(position, row, line)
                    row += 1

    def _lines(self, name: str, part: Slice, file: BinaryIO) -> Iterator[tuple[str, bytes | None]]:
        """Keys and lines that begin in the slice."""
        start = part.start
        if start:  # a line that begins at start follows a newline at start - 1
            file.seek(start - 1)
            start += next((length for _, length in lines(file, self.max_record_bytes)), 1) - 1
        for line, length in lines(file, self.max_record_bytes):
            if start >= part.stop:
                return
            if line is None or line.strip() not in (b"", BOM):
                yield f"{name}@{start}", line
            start += length

    def _compressed(self, name: str, part: Slice, file: BinaryIO) -> Iterator[tuple[str, bytes | None]]:
        """Keys and lines of the whole file."""
        try:
            stream = decompressed(part.url, file)
            for number, (line, _) in enumerate(lines(stream, self.max_record_bytes)):
                if line is None or line.strip() not in (b"", BOM):
                    yield f"{name}#{number}", line
        except (pa.ArrowException, OSError) as error:
            raise CorpusUnreadable(
                f"{part.url} does not decompress ({error}): copy it again, or exclude it"
            ) from error

    def _record(self, position: str, row: int, line: bytes | None) -> Read:
        def refuse(reason: str, code: str = "undecodable") -> Quarantined:
            return Quarantined(position, row, None, code, f"{position}: {reason}")

        if line is None:
            return refuse(f"a line longer than max_record_bytes ({self.max_record_bytes})", "too_large")
        try:
            item = json.loads(line.removeprefix(BOM).decode())
        except UnicodeDecodeError as error:
            return refuse(f"no UTF-8 at byte {error.start} of the line")
        except (ValueError, RecursionError) as error:
            return refuse(f"no JSON: {error}")
        if not isinstance(item, dict):
            return refuse(f"a JSON {type(item).__name__} in place of an object")
        if self.where.equals:
            compared = {column: value_of(item, column) for column in self.where.equals}
            if not self.where.admits_columns({name: v for name, v in compared.items() if v is not MISSING}):
                return Filtered(position, row)
        data = {}
        for field, column in self.fields.items():
            data[field] = value = value_of(item, column)
            if not isinstance(value, str if not self.columns else str | int | float):
                what = "no text" if not self.columns else "no text and no number"
                return refuse(f"column {column!r} is {_kind(value)}, {what}")
        key: Any = position
        if self.key_column is not None:
            key = value_of(item, self.key_column)
            if isinstance(key, bool) or not isinstance(key, str | int):
                return refuse(f"key column {self.key_column!r} is {_kind(key)}")
        for value in (key, *data.values()):
            if isinstance(value, str) and not _encodes(value):
                return refuse("a lone surrogate, which is no Unicode text")
        return Record(str(key), row, data)


def lines(stream: BinaryIO, limit: int) -> Iterator[tuple[bytes | None, int]]:
    """Each line with its ending, and its length in bytes; None for a line longer than limit."""
    while line := stream.readline(limit + 1):
        length = len(line)
        if length <= limit or line.endswith(b"\n"):
            yield line, length
            continue
        del line
        while more := stream.readline(1 << 20):
            length += len(more)
            if more.endswith(b"\n"):
                break
        yield None, length


def compression(url: str) -> str | None:
    """ "gzip", "zstd" or None, by the file's name."""
    return {"gz": "gzip", "tgz": "gzip", "zst": "zstd"}.get(url.rpartition(".")[2].lower())


def decompressed(url: str, file: BinaryIO) -> BinaryIO:
    """The content of a compressed file, of any number of members or frames, as a buffered stream.

    Arrow's reader, because it raises on a truncated file, where zstandard's stream reader just ends.
    """
    stream = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), compression(url))
    return io.BufferedReader(stream, buffer_size=1 << 20)


def value_of(item: Mapping[str, Any], column: str) -> Any:
    """The value of a column, inside of objects where it has dots; MISSING if there is none."""
    if column in item:
        return item[column]
    found: Any = item
    for name in column.split("."):
        if not isinstance(found, dict) or name not in found:
            return MISSING
        found = found[name]
    return found


def _kind(value: Any) -> str:
    return "missing" if value is MISSING else f"a JSON {type(value).__name__}"


def _encodes(text: str) -> bool:
    """False for a str with a lone surrogate, which "\\\\ud800" in JSON makes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
