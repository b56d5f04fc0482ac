"""WebDataset: tars whose members with one name and several extensions are one sample.

Read with Python's `tarfile`, not with the library `webdataset`. That knows no byte offsets, so a large tar
could not be cut into units; it reads members whole, whatever their size; it drops links without a word, and a
broken sample takes the rest of its shard with it or, with its `handler`, goes unreported; and it opens
"pipe:" URLs by a shell. What it calls a sample is a sample here: the key is the path up to the first dot of
the name, the extension the rest, in small letters; members of a sample stand one after the other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, BinaryIO, ClassVar, Literal

import pyarrow as pa
from pydantic import Field, PositiveInt

from pipeline.corpus.base import NOTHING_PLANNED, Filtered, Read, Record
from pipeline.corpus.files import FileSource, joined, pack, part_of, whole
from pipeline.corpus.jsonl import compression, decompressed
from pipeline.corpus.media import IMAGES, SOUNDS
from pipeline.corpus.tar import BrokenTar, Member, Tape, members
from pipeline.targets.errors import CorpusUnreadable
from pipeline.targets.unit import Quarantined, Slice, Unit

USUAL: Mapping[str, list[str]] = {
    "image": list(IMAGES),
    "audio": list(SOUNDS),
    "text": ["txt", "text"],
    "json": ["json"],
}
TEXTS = ("txt", "text")
SAMPLE = re.compile(r"((?:.*/)?[^/.]+)\.([^/]+)", re.DOTALL)


class WebDatasetTars(FileSource):
    """WebDataset tars; a record is a sample, its key `<file>#<the sample's key>`.

    Members that are named .txt are text, .json what the JSON holds, all others bytes. A tar is cut between
    samples into byte ranges, a compressed one is never cut. Folders, names without an extension and those
    that begin with a dot or "__" are no part of a sample.
    """

    usual: ClassVar[tuple[str, ...]] = ("*.tar", "*.tar.gz", "*.tgz", "*.tar.zst")

    decides: ClassVar[frozenset[str]] = FileSource.decides | {"fields"}

    kind: Literal["webdataset"] = "webdataset"
    """WebDataset tars, plain or compressed (.gz, .tgz, .zst)."""

    fields: dict[str, list[str]] | None = Field(default=None, min_length=1)
    """The extensions of each field of a record, the first one found counting: {image: [jpg, png], text:
    [txt]}. A sample that lacks a field is quarantined. By default "image", "audio", "text" and "json" by
    their usual extensions, of which a sample needs one."""

    unit_bytes: PositiveInt = 1 << 30
    """Bytes of samples that make a unit. A tar that is not larger is neither opened for planning nor cut; of
    a larger one all headers are read. A larger sample is a unit by itself."""

    max_record_bytes: PositiveInt = 64 << 20
    """A sample with more bytes in its fields is quarantined, not read."""

    def units(self, planned: Mapping[str, str] = NOTHING_PLANNED) -> Iterator[Unit]:
        return pack(self._parts(planned), self.unit_bytes)

    def _parts(self, planned: Mapping[str, str]) -> Iterator[tuple[Slice, int, int]]:
        for file in self.new_files(planned):
            if compression(file.url) or file.size <= self.unit_bytes:
                yield whole(file), file.size, file.size
                continue
            with self.peek(file, skipping=True) as opened, tar(file.url):
                starts = list(sample_starts(opened, file.size))
            for start, stop in joined(pairwise([*starts, file.size]), self.unit_bytes):
                yield part_of(file, start, stop), stop - start, stop - start

    def records(self, unit: Unit) -> Generator[Read, None, None]:
        row = 0
        for part in unit.slices:
            name = self.name(part)
            with self.open(part) as file, tar(part.url):
                seen: set[str] = set()
                for sample in self._samples(part, file, name):
                    yield self._record(sample, row, name, seen)
                    row += 1

    def _samples(self, part: Slice, file: BinaryIO, name: str) -> Iterator[Sample]:
        """The samples that begin in the slice."""
        packed = compression(part.url)
        file.seek(part.start)
        stream = decompressed(part.url, file) if packed else file
        sample: Sample | None = None
        for member, tape in members(stream, part.start, None if packed else part.size):
            if not packed and member.start >= part.stop:
                break
            key, extension = _named(member)
            if key is None:
                continue
            if sample is None or sample.key != key:
                if sample is not None:
                    yield sample
                sample = Sample(key, self.chooses(f"{name}#{key}"))
            if sample.chosen:
                self._take(sample, member, extension, tape)
        if sample is not None:
            yield sample

    def _take(self, sample: Sample, member: Member, extension: str, tape: Tape) -> None:
        """Put a member into its sample, if it is wanted and nothing is wrong with it."""
        if member.fault is not None:
            sample.fault = ("undecodable", f"{member.name} is {member.fault}")
        if sample.fault is not None or extension not in self._wanted:
            return
        if extension in sample.contents:
            sample.fault = ("undecodable", f"two members are named {member.name}")
            return
        sample.size += member.size
        if sample.size > self.max_record_bytes:
            sample.fault = ("too_large", f"it has more than max_record_bytes ({self.max_record_bytes})")
            sample.contents.clear()
            return
        sample.contents[extension] = tape.content(member.size)

    @property
    def _extensions(self) -> Mapping[str, list[str]]:
        return USUAL if self.fields is None else self.fields

    @property
    def _wanted(self) -> set[str]:
        return {extension for extensions in self._extensions.values() for extension in extensions}

    def _record(self, sample: Sample, row: int, name: str, seen: set[str]) -> Read:
        key = f"{name}#{sample.key}"
        if not sample.chosen:
            return Filtered(key, row)
        if sample.key in seen:
            sample.fault = ("duplicate", "another sample before it has the same key")
        seen.add(sample.key)
        data: dict[str, Any] = {}
        if sample.fault is None:
            try:
                data = {
                    name: value(extension, sample.contents[extension])
                    for name, extensions in self._extensions.items()
                    if (extension := next((e for e in extensions if e in sample.contents), None)) is not None
                }
            except (ValueError, RecursionError) as error:
                sample.fault = ("undecodable", str(error))
        lacking = [name for name in self._extensions if name not in data] if self.fields else []
        if sample.fault is None and (lacking or not data):
            wanted = self._extensions[lacking[0]] if lacking else sorted(self._wanted)
            sample.fault = ("undecodable", f"it has no member .{', .'.join(wanted)}")
        if sample.fault is not None:
            return Quarantined(key, row, None, sample.fault[0], f"{key}: {sample.fault[1]}")
        return Record(key, row, data)


def sample_starts(file: BinaryIO, size: int) -> Iterator[int]:
    """The byte at which each sample of a tar begins. Raises BrokenTar."""
    last: str | None = None
    for member, _ in members(file, 0, size):
        key, _ = _named(member)
        if key is not None and key != last:
            yield member.start
            last = key


@dataclass
class Sample:
    """What has been read of a sample. contents: by extension; fault: code and reason of what is wrong."""

    key: str
    chosen: bool
    contents: dict[str, bytes] = field(default_factory=dict)
    size: int = 0
    fault: tuple[str, str] | None = None


def _named(member: Member) -> tuple[str | None, str]:
    """Key of the sample and extension; None for what is no part of one."""
    found = SAMPLE.fullmatch(member.name)
    first = member.name.removeprefix("./").rpartition("/")[2]
    if member.is_folder or found is None or first.startswith("__"):
        return None, ""
    return found[1].removeprefix("./"), found[2].lower()


def value(extension: str, content: bytes) -> Any:
    """What a member holds. Raises ValueError, RecursionError."""
    last = extension.rpartition(".")[2]
    if last in TEXTS:
        return content.decode()
    if last == "json":
        return json.loads(content)
    return content


@contextmanager
def tar(url: str) -> Iterator[None]:
    """Raises CorpusUnreadable naming the file when it is no tar, or a part of one."""
    try:
        yield
    except (BrokenTar, pa.ArrowException, OSError) as error:
        raise CorpusUnreadable(
            f"{url} is broken or no tar ({error}): copy it again, or exclude it"
        ) from error
