"""Text and source files: each file is one record, and a unit holds many.

It knows UTF-8 and nothing else: no markup, no language, no tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar, Literal

from pydantic import PositiveInt

from pipeline.corpus.base import NOTHING_PLANNED, Record
from pipeline.corpus.files import FileSource, pack, whole
from pipeline.corpus.listing import is_local
from pipeline.targets.unit import Quarantined, Slice, Unit

READERS = 16  # requests at a time for remote files, each of which costs a round trip


class TextFiles(FileSource):
    """UTF-8 files; a record is {"text": str}, its key the file's path below the URLs' common root."""

    usual: ClassVar[tuple[str, ...]] = ("*",)

    kind: Literal["text"] = "text"
    """Plain text or source files."""

    unit_bytes: PositiveInt = 8 << 20
    """Bytes of files that make a unit; a larger file is a unit by itself."""

    max_file_bytes: PositiveInt = 64 << 20
    """A larger file is quarantined, not read."""

    def units(self, planned: Mapping[str, str] = NOTHING_PLANNED) -> Iterator[Unit]:
        files = self.new_files(planned)
        return pack(((whole(file), file.size, file.size) for file in files), self.unit_bytes)

    def read(self, unit: Unit) -> Iterator[Record | Quarantined]:
        for row, (part, data) in enumerate(self._contents(unit)):
            key = self.name(part.url)
            if data is None:
                reason = f"{part.url} has {part.size} bytes, more than max_file_bytes ({self.max_file_bytes})"
                yield Quarantined(key, row, None, "too_large", reason)
                continue
            try:
                yield Record(key, row, {"text": data.removeprefix(b"\xef\xbb\xbf").decode()})
            except UnicodeDecodeError as error:
                reason = f"{part.url} is not UTF-8: byte {data[error.start]:#04x} at {error.start}"
                yield Quarantined(key, row, None, "undecodable", reason)

    def _contents(self, unit: Unit) -> Iterator[tuple[Slice, bytes | None]]:
        if all(is_local(part.url) for part in unit.slices):
            for part in unit.slices:
                yield part, self._content(part)
            return
        with ThreadPoolExecutor(READERS) as pool:
            for start in range(0, len(unit.slices), READERS):
                parts = unit.slices[start : start + READERS]
                yield from zip(parts, pool.map(self._content, parts), strict=True)

    def _content(self, part: Slice) -> bytes | None:
        """The bytes of the planned file; None if they are too many."""
        if part.size > self.max_file_bytes:
            return None
        with self.open(part) as file:
            return file.read()
