"""A corpus made of files: what is planned once, read only if it is still the file that was planned.

What every source of files shares, filters and sampling included. It knows nothing of what is inside a file.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any, BinaryIO, ClassVar

from pydantic import Field, field_validator

from pipeline.corpus.base import NOTHING_PLANNED, Filtered, Read, Record, Source
from pipeline.corpus.listing import File, absolute, find, fixed, look, open_file
from pipeline.corpus.marks import Marks, below, shared, unmarked
from pipeline.corpus.selection import Where, drawn
from pipeline.targets.errors import CorpusChanged, CorpusMissing, CorpusUnreadable, SpecMismatch
from pipeline.targets.unit import Slice, Unit

SLICES = 4096  # of a unit, at most: so that tiny files, too, are spread over units


class FileSource(Source):
    """A source made of files."""

    usual: ClassVar[tuple[str, ...]] = ("*",)

    decides: ClassVar[frozenset[str]] = frozenset({"root", "where", "sample", "sample_seed"})
    """Fields that say which records there are and what they hold. Planned files are bound to their values."""

    urls: list[str] = Field(min_length=1)
    """Files, folders or globs: local paths (~ is the home directory) or any URL that fsspec reads."""

    options: dict[str, Any] = Field(default={})
    """fsspec options of the URLs, for example {endpoint_url: …}; credentials belong in the environment."""

    pattern: str | None = None
    """Which files of a folder to take: "*.py" looks at the name, "src/**/*.py" at the path inside the folder.
    By default those with the form's usual names. Hidden files and __pycache__ are skipped."""

    exclude: list[str] = Field(default=[])
    """Files to leave out, as globs like those of `pattern`."""

    root: str | None = None
    """The folder or URL that records' keys are relative to. By default what all `urls` share when the first
    are planned, and the same for those that come later: a file that is not below it has its whole URL."""

    where: Where = Where()
    """Conditions that a record has to meet to be labelled."""

    sample: float = Field(default=1.0, gt=0, le=1)
    """Share of the records to take, drawn by a hash of each key."""

    sample_seed: int = Field(default=0, ge=-(2**63), lt=2**63)
    """Another seed draws another sample."""

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
            matching = list(self.find(absolute(url), patterns))
            if not matching:
                raise CorpusMissing(
                    f"no corpus file matches {url}: check the path, and the source's pattern and exclude"
                )
            found.update((file.url, file) for file in matching)
        return [found[url] for url in sorted(found)]

    def find(self, url: str, patterns: Sequence[str]) -> Iterator[File]:
        """The files that an absolute URL stands for. Raises CorpusUnreadable when listing fails."""
        return find(url, self.options, patterns, self.excluded())

    def excluded(self) -> list[str]:
        """Globs of files to leave out."""
        return self.exclude

    def new_files(self, planned: Mapping[str, str] = NOTHING_PLANNED) -> Iterator[File]:
        """The files that are not planned yet, their fingerprints marked.

        Raises CorpusChanged when a planned one is another file now, SpecMismatch when it was planned with
        other settings, or when the root of those that are planned is neither stated nor above any URL.
        """
        marks, files, mark = self._marks(), self.files(), ""
        for file in files:
            before = planned.get(file.url)
            if before is None:
                mark = mark or marks.of(self._root(files, planned, marks))
                yield replace(file, fingerprint=file.fingerprint + mark)
            elif unmarked(before) != file.fingerprint:
                raise _another(file.url)
            elif marks.root(file.url, before) is None:
                raise self._unbound(file.url)

    def _root(self, files: Sequence[File], planned: Mapping[str, str], marks: Marks) -> str:
        """What the keys of new files are relative to: the same as of those that are planned, if any are."""
        if self.root is not None:
            return absolute(self.root)
        for url, fingerprint in planned.items():
            root = marks.root(url, fingerprint)
            if root is not None:
                if not marks.named(root):
                    raise SpecMismatch(
                        f"the keys of the planned corpus files are relative to {root}, and none of the job's "
                        f"corpus.urls is below it: set corpus.root: {root}, or leave the planned URLs among "
                        "the new ones"
                    )
                return root
        names = {file.url for file in files}
        places = map(absolute, self.urls)
        return shared([url.rpartition("/")[0] if url in names else fixed(url)[0] for url in places])

    def check(self, part: Slice) -> None:
        """Raises CorpusChanged unless the file is still the one that was planned."""
        try:
            file = self.look(part.url)
        except FileNotFoundError as error:
            raise CorpusChanged(
                f"the planned corpus file {part.url} vanished: restore it, or label the rest into a new store"
            ) from error
        if file.fingerprint != unmarked(part.fingerprint) or file.size != part.size:
            raise _another(part.url)

    def look(self, url: str) -> File:
        """A file of the plan as it is now. Raises FileNotFoundError."""
        return look(url, self.options)

    @abstractmethod
    def records(self, unit: Unit) -> Generator[Read, None, None]:
        """What `read` is to give, before keys and values are filtered."""

    def read(self, unit: Unit) -> Generator[Read, None, None]:
        marks = self._marks()
        for part in unit.slices:  # of those, too, that are not opened because their keys are not chosen
            if marks.root(part.url, part.fingerprint) is None:
                raise self._unbound(part.url)
        with closing(self.records(unit)) as items:
            if self.sample == 1 and self.where == type(self.where)():
                yield from items
                return
            for item in items:
                if self.chooses(item.key) and (not isinstance(item, Record) or self.where.admits(item.data)):
                    yield item
                else:
                    yield Filtered(item.key, item.row)

    def chooses(self, key: str) -> bool:
        """Whether a record of this key may be labelled, as far as its key tells."""
        return self.where.admits_key(key) and drawn(key, self.sample, self.sample_seed)

    def _marks(self) -> Marks:
        """Those that bind what is planned to `decides`."""
        settings = self.model_dump(mode="json", include=set(self.decides) - {"root"}, exclude_defaults=True)
        return Marks(settings, self.root, self.urls)

    def _unbound(self, url: str) -> SpecMismatch:
        """The error for a file whose records would not be those that were planned."""
        return SpecMismatch(
            f"the corpus file {url} was planned with other settings than the job's ("
            f"{', '.join(sorted(self.decides))}, or its name or weight in a mix): go back to them, or label "
            "into a new store"
        )

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
    def peek(self, file: File, skipping: bool = False) -> Iterator[BinaryIO]:
        """A listed file, to see while planning how it can be cut. skipping: as in `open_file`.

        Raises CorpusUnreadable.
        """
        try:
            with open_file(file.url, self.options, skipping) as opened:
                yield opened
        except OSError as error:
            raise CorpusUnreadable(f"the corpus file {file.url} cannot be read: {error}") from error

    def name(self, part: Slice) -> str:
        """The name in record keys of a file of the plan: relative to the root that it was planned with, or
        its whole URL where it is not below that.
        """
        return below(self._marks().root(part.url, part.fingerprint) or "", part.url)

    def names(self, unit: Unit) -> list[str]:
        """The `name` of each slice's file."""
        marks = self._marks()
        return [below(marks.root(part.url, part.fingerprint) or "", part.url) for part in unit.slices]


def _another(url: str) -> CorpusChanged:
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


def joined(pieces: Iterable[tuple[int, int]], most: int) -> Iterator[tuple[int, int]]:
    """Ranges of consecutive pieces, each start and stop, as long as `most` allows or of one piece."""
    held: tuple[int, int] | None = None
    for start, stop in pieces:
        if held is not None and stop - held[0] > most:
            yield held
            held = None
        held = (start if held is None else held[0], stop)
    if held is not None:
        yield held
