"""A corpus made of files: what is planned once, read only if it is still the file that was planned.

What every source of files shares. It knows nothing of what is inside a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import takewhile
from typing import Any, BinaryIO, ClassVar

from pydantic import Field, field_validator

from pipeline.corpus.base import NOTHING_PLANNED, Source
from pipeline.corpus.listing import File, absolute, find, fixed, look, open_file
from pipeline.targets.errors import CorpusChanged, CorpusMissing, CorpusUnreadable
from pipeline.targets.unit import Slice, Unit

SLICES = 4096  # of a unit, at most: so that tiny files, too, are spread over units


class FileSource(Source):
    """A source made of files."""

    usual: ClassVar[tuple[str, ...]] = ("*",)

    urls: list[str] = Field(min_length=1)
    """Files, folders or globs: local paths (~ is the home directory) or any URL that fsspec reads."""

    options: dict[str, Any] = Field(default={})
    """fsspec options of the URLs, for example {endpoint_url: …}; credentials belong in the environment."""

    pattern: str | None = None
    """Which files of a folder to take: "*.py" looks at the name, "src/**/*.py" at the path inside the folder.
    By default those with the form's usual names. Hidden files and __pycache__ are skipped."""

    exclude: list[str] = Field(default=[])
    """Files to leave out, as globs like those of `pattern`."""

    @field_validator("urls")
    @classmethod
    def _no_chains(cls, urls: list[str]) -> list[str]:
        for url in urls:
            if "::" in url:
                raise ValueError(f"chained URLs are not supported: {url}")
            if not url:
                raise ValueError("an empty URL")
        return urls

    def files(self) -> list[File]:
        """All files of the corpus, once each, sorted by URL.

        Raises CorpusMissing naming a URL that matches nothing, CorpusUnreadable when listing fails.
        """
        patterns = [self.pattern] if self.pattern else self.usual
        found: dict[str, File] = {}
        for url in self.urls:
            matching = list(find(absolute(url), self.options, patterns, self.exclude))
            if not matching:
                raise CorpusMissing(
                    f"no corpus file matches {url}: check the path, and the source's pattern and exclude"
                )
            found.update((file.url, file) for file in matching)
        return [found[url] for url in sorted(found)]

    def new_files(self, planned: Mapping[str, str] = NOTHING_PLANNED) -> Iterator[File]:
        """The files that are not planned yet. Raises CorpusChanged when a planned one is another file now."""
        for file in self.files():
            before = planned.get(file.url)
            if before is None:
                yield file
            elif before != file.fingerprint:
                raise changed(file.url)

    def check(self, part: Slice) -> None:
        """Raises CorpusChanged unless the file is still the one that was planned."""
        try:
            file = look(part.url, self.options)
        except FileNotFoundError as error:
            raise CorpusChanged(
                f"the planned corpus file {part.url} vanished: restore it, or label the rest into a new store"
            ) from error
        if file.fingerprint != part.fingerprint or file.size != part.size:
            raise changed(part.url)

    @contextmanager
    def open(self, part: Slice) -> Iterator[BinaryIO]:
        """The planned file, seekable and buffered, checked before and after it was read.

        Raises CorpusChanged, or CorpusUnreadable when the file is there but reading it fails.
        """
        self.check(part)
        try:
            with open_file(part.url, self.options) as file:
                yield file
        except OSError as error:
            self.check(part)
            raise CorpusUnreadable(f"the corpus file {part.url} cannot be read: {error}") from error
        self.check(part)

    @contextmanager
    def peek(self, file: File) -> Iterator[BinaryIO]:
        """A listed file, to see while planning how it can be cut. Raises CorpusUnreadable."""
        try:
            with open_file(file.url, self.options) as opened:
                yield opened
        except OSError as error:
            raise CorpusUnreadable(f"the corpus file {file.url} cannot be read: {error}") from error

    def name(self, url: str) -> str:
        """A file's name in record keys: relative to the common root of the configured URLs."""
        roots = [fixed(absolute(item))[0].split("/") for item in self.urls]
        root = "/".join(
            column[0] for column in takewhile(lambda c: len(set(c)) == 1, zip(*roots, strict=False))
        )
        if url == root:
            return url.rpartition("/")[2]
        return url[len(root) + 1 :] if url.startswith(f"{root}/") else url


def changed(url: str) -> CorpusChanged:
    """The error for a file that is not what it was."""
    return CorpusChanged(
        f"the corpus file {url} is no longer the one that was planned: restore it, or label into a new store"
    )


def whole(file: File) -> Slice:
    """All of a file, counted in bytes."""
    return part_of(file, 0, file.size)


def part_of(file: File, start: int, stop: int) -> Slice:
    """A part of a file; what start and stop count is the source's affair."""
    return Slice(file.url, start, stop, file.size, file.fingerprint)


def pack(parts: Iterable[tuple[Slice, int, int]], most: int) -> Iterator[Unit]:
    """Units of consecutive slices. parts: slice, weight and estimated bytes.

    A unit's weight is at most `most`, unless one slice alone weighs more, and it has at most SLICES slices.
    """
    held: list[Slice] = []
    total = size = 0
    for part, weight, size_bytes in parts:
        if held and (total + weight > most or len(held) == SLICES):
            yield Unit(tuple(held), size)
            held, total, size = [], 0, 0
        held.append(part)
        total += weight
        size += size_bytes
    if held:
        yield Unit(tuple(held), size)


def cut(total: int, most: int) -> Iterator[tuple[int, int]]:
    """Ranges of nearly equal length, at most `most`, that cover 0 to total."""
    pieces = -(-total // most)
    for i in range(pieces):
        yield total * i // pieces, total * (i + 1) // pieces
