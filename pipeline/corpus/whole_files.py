"""Corpora in which each file is one record: packed into units by size, read a few at a time.

It knows files and bytes; what they mean, the source says that derives from it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import compress
from typing import Any

from pydantic import PositiveInt

from pipeline.corpus.base import NOTHING_PLANNED, Filtered, Read, Record
from pipeline.corpus.files import FileSource, pack, whole
from pipeline.corpus.listing import is_local
from pipeline.targets.unit import Quarantined, Slice, Unit

READERS = 16  # requests at a time for remote files, each of which costs a round trip


class Undecodable(Exception):
    """A file's content is not what the source says; the message is what is wrong with it."""


class WholeFiles(FileSource):
    """A file is a record, its key the file's path below the URLs' common root."""

    unit_bytes: PositiveInt
    """Bytes of files that make a unit; a larger file is a unit by itself."""

    max_file_bytes: PositiveInt
    """A larger file is quarantined, not read."""

    def units(self, planned: Mapping[str, str] = NOTHING_PLANNED) -> Iterator[Unit]:
        files = self.new_files(planned)
        return pack(((whole(file), file.size, file.size) for file in files), self.unit_bytes)

    def records(self, unit: Unit) -> Generator[Read, None, None]:
        keys = self.names(unit)
        chosen = [self.chooses(key) for key in keys]
        contents = self._contents(list(compress(unit.slices, chosen)))
        for row, (key, part, is_chosen) in enumerate(zip(keys, unit.slices, chosen, strict=True)):
            yield self._record(key, row, part, next(contents)) if is_chosen else Filtered(key, row)

    @abstractmethod
    def value(self, data: bytes) -> Mapping[str, Any] | None:
        """What a record holds whose file has these bytes; None if it is none. Raises Undecodable."""

    def too_large(self, key: str, row: int, part: Slice) -> Read:
        """What a file is that has more than `max_file_bytes`."""
        reason = f"{part.url} has {part.size} bytes, more than max_file_bytes ({self.max_file_bytes})"
        return Quarantined(key, row, None, "too_large", reason)

    def _record(self, key: str, row: int, part: Slice, data: bytes | None) -> Read:
        if data is None:
            return self.too_large(key, row, part)
        try:
            value = self.value(data)
        except Undecodable as error:
            return Quarantined(key, row, None, "undecodable", f"{part.url} {error}")
        return Filtered(key, row) if value is None else Record(key, row, value)

    def _contents(self, parts: list[Slice]) -> Iterator[bytes | None]:
        if all(is_local(part.url) for part in parts):
            yield from map(self._content, parts)
            return
        with ThreadPoolExecutor(READERS) as pool:
            for start in range(0, len(parts), READERS):
                yield from pool.map(self._content, parts[start : start + READERS])

    def _content(self, part: Slice) -> bytes | None:
        """The bytes of the planned file; None if they are too many."""
        if part.size > self.max_file_bytes:
            return None
        with self.open(part) as file:
            return file.read()
