"""Arrow: IPC files and streams, and the folders that Hugging Face `datasets` saves, read with pyarrow alone.

A stream has no index, so the frames of its messages are read to see where each record batch begins; a unit is
a range of batches, and reading one seeks there. No batch is trusted: it is validated before a value of it is
looked at, and no extension type is unpickled.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, ClassVar, Literal

import pyarrow as pa
from pydantic import PositiveInt

from pipeline.corpus.base import NOTHING_PLANNED, Read
from pipeline.corpus.columns import ColumnFiles
from pipeline.corpus.files import joined, pack, part_of, whole
from pipeline.corpus.listing import File, open_file
from pipeline.targets.errors import CorpusMissing, CorpusUnreadable
from pipeline.targets.unit import Slice, Unit

MAGIC = b"ARROW1\0\0"
SCHEMA, DICTIONARY, BATCH = 1, 2, 3  # kinds of messages
STATE = "state.json"
STATE_BYTES = 16 << 20
FRAME = struct.Struct("<Ii")
CONTINUED = 0xFFFFFFFF


class ArrowFiles(ColumnFiles):
    """Arrow files and streams, and saved `datasets`; a record is {"text": str}, or has the fields of
    `columns`.

    Its key is `<file>@<byte of the record batch>#<row in it>`, or the key column. Of a folder with a
    state.json, which `save_to_disk` writes, the files that it names are taken and no others: what lies beside
    them is a cache.
    """

    usual: ClassVar[tuple[str, ...]] = ("*.arrow", "*.arrows", "*.feather")

    kind: Literal["arrow"] = "arrow"
    """Arrow files, streams, and saved Hugging Face datasets."""

    unit_bytes: PositiveInt = 16 << 20
    """Bytes of record batches that make a unit; a larger batch is a unit by itself."""

    def find(self, url: str, patterns: Sequence[str]) -> Iterator[File]:
        named: dict[str, set[str] | None] = {}
        for file in super().find(url, patterns):
            folder, _, name = file.url.rpartition("/")
            if folder not in named:
                named[folder] = self._named_by_state(folder)
            wanted = named[folder]
            if wanted is None or name in wanted:
                yield file
                if wanted is not None:
                    wanted.discard(name)
        if self.pattern is None and not self.exclude:
            for folder, missing in named.items():
                if missing and folder.startswith(url):
                    raise CorpusMissing(
                        f"{folder}/{STATE} names {min(missing)}, which is not there: copy the dataset again"
                    )

    def _named_by_state(self, folder: str) -> set[str] | None:
        """The data files of a saved dataset; None if the folder is none."""
        try:
            with open_file(f"{folder}/{STATE}", self.options) as file:
                state = json.loads(file.read(STATE_BYTES))
            return {str(entry["filename"]) for entry in state["_data_files"]}
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, RecursionError):
            return None  # of something else: it is not Hugging Face's alone to call a file so

    def units(self, planned: Mapping[str, str] = NOTHING_PLANNED) -> Iterator[Unit]:
        return pack(self._parts(planned), self.unit_bytes)

    def _parts(self, planned: Mapping[str, str]) -> Iterator[tuple[Slice, int, int]]:
        for file in self.new_files(planned):
            with self.peek(file, skipping=True) as opened, arrow(file.url):
                found = messages(opened, file.size)
                self.check_columns(file.url, read_schema(opened, next(found, None)))
                batches = [message for message in found if message.kind in (DICTIONARY, BATCH)]
            if any(message.kind == DICTIONARY for message in batches):
                parts = [whole(file)]  # a batch means nothing without the dictionaries before it
            else:
                pieces = ((batch.start, batch.stop) for batch in batches)
                parts = [part_of(file, *span) for span in joined(pieces, self.unit_bytes)]
            for part in parts:
                yield part, part.stop - part.start, part.stop - part.start

    def records(self, unit: Unit) -> Generator[Read, None, None]:
        row = 0
        for part in unit.slices:
            name = self.name(part)
            with self.open(part) as file, arrow(part.url):
                schema = read_schema(file, next(messages(file, part.size), None))
                self.check_columns(part.url, schema)
                texts = self.texts(schema)
                for at, batch in batches(file, part, schema):
                    batch.validate(full=True)  # the offsets inside of it, which no reader looks at
                    prefix = f"{name}@{at}#"
                    yield from self.rows(batch, range(len(batch)), row, prefix, 0, texts)
                    row += len(batch)


def batches(file: BinaryIO, part: Slice, schema: pa.Schema) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The record batches of a slice, each with the byte it begins at, or with its number in a whole file.

    Their strings are bytes where that can be: what is no UTF-8 then spoils its own record alone.
    """
    if part.start == 0:
        for number, batch in enumerate(with_dictionaries(file)):
            if not batch.schema.equals(schema):
                raise ValueError("its footer has another schema than its beginning")
            yield number, batch
        return
    plain = pa.schema([field.with_type(as_bytes(field.type)) for field in schema])
    for message in messages(file, part.size, part.start):
        if message.start >= part.stop:
            return
        if message.kind == BATCH:
            file.seek(message.start)
            frame = pa.py_buffer(file.read(message.stop - message.start))
            yield message.start, pa.ipc.read_record_batch(pa.ipc.read_message(frame), plain)


@dataclass(frozen=True)
class Message:
    """A message of a stream: what it is, and the bytes it takes, its frame included."""

    kind: int
    start: int
    stop: int


def messages(file: BinaryIO, size: int, start: int = 0) -> Iterator[Message]:
    """The messages of an IPC file or stream from a byte on, bodies unread. Raises ValueError.

    The format: https://arrow.apache.org/docs/format/Columnar.html#encapsulated-message-format
    """
    if start == 0:
        file.seek(0)
        start = len(MAGIC) if file.read(len(MAGIC)) == MAGIC else 0
    while start < size:
        file.seek(start)
        first, length = FRAME.unpack(file.read(FRAME.size).ljust(FRAME.size, b"\0"))
        frame = FRAME.size
        if first != CONTINUED:  # a stream of before Arrow 0.15: the length alone
            frame, length = 4, first
            file.seek(start + frame)
        if length == 0:
            return
        if not 0 < length <= size - start - frame:
            raise ValueError(f"no message at byte {start}")
        kind, body = described(file.read(length))
        stop = start + frame + length + body
        if body < 0 or stop > size:
            raise ValueError(f"the message at byte {start} ends after the file")
        yield Message(kind, start, stop)
        start = stop


def described(metadata: bytes) -> tuple[int, int]:
    """The kind of a message and the bytes of its body: two fields of the flatbuffer Message, which pyarrow
    gives only with the body. Raises struct.error, ValueError.
    """
    (table,) = struct.unpack_from("<I", metadata)
    (back,) = struct.unpack_from("<i", metadata, table)
    vtable = table - back
    if vtable < 0:
        raise ValueError("a message without a table")
    (extent,) = struct.unpack_from("<H", metadata, vtable)

    def field(number: int, layout: str) -> int:
        at = 4 + 2 * number
        offset = struct.unpack_from("<H", metadata, vtable + at)[0] if at + 2 <= extent else 0
        return int(struct.unpack_from(layout, metadata, table + offset)[0]) if offset else 0

    return field(1, "<B"), field(3, "<q")


def read_schema(file: BinaryIO, message: Message | None) -> pa.Schema:
    """The schema that begins a file or stream. Raises ValueError when it is none, ArrowException."""
    if message is None or message.kind != SCHEMA:
        raise ValueError("it does not begin with a schema")
    file.seek(message.start)
    return pa.ipc.read_schema(pa.py_buffer(file.read(message.stop - message.start)))


def as_bytes(kind: pa.DataType) -> pa.DataType:
    """The type with the same layout whose strings are bytes, those inside of structs and lists too."""
    if pa.types.is_string(kind):
        return pa.binary()
    if pa.types.is_large_string(kind):
        return pa.large_binary()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(as_bytes(field.type)) for field in kind.fields])
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(as_bytes(kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(as_bytes(kind.value_type)))
    return kind


def with_dictionaries(file: BinaryIO) -> Iterator[pa.RecordBatch]:
    """The record batches of a whole file or stream whose columns refer to dictionaries."""
    file.seek(0)
    # A file is a stream between a magic number, padded to eight bytes, and a footer. Arrow's reader of files
    # would read in a thread of its own, see `pipeline.targets.parquet_file`.
    file.seek(8 if file.read(len(MAGIC)) == MAGIC else 0)
    yield from pa.ipc.open_stream(file)


@contextmanager
def arrow(url: str) -> Iterator[None]:
    """Raises CorpusUnreadable naming the file when it, or a batch of it, is broken."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, struct.error, RecursionError) as error:
        reason = str(error).partition("\n")[0]
        raise CorpusUnreadable(
            f"{url} is broken or no Arrow ({reason}): copy it again, or exclude it"
        ) from error
