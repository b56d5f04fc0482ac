"""The files of a corpus: listed, told apart by fingerprint, opened only if they are still those that were planned.

What every source shares. It knows fsspec and local folders; it knows nothing of what is inside a file.
"""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, ClassVar

import fsspec
from fsspec.utils import glob_translate, get_protocol
from pydantic import Field, field_validator

from pipeline.corpus.base import NOTHING_PLANNED, Source
from pipeline.targets.errors import ConfigError, CorpusChanged, CorpusMissing, CorpusUnreadable
from pipeline.targets.unit import Slice, Unit

CACHES = {"__pycache__"}
MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class File:
    """One corpus file. url: an absolute local path, or a full URL; size: bytes."""

    url: str
    size: int
    fingerprint: str

    def slice(self, start: int, stop: int) -> Slice:
        """A part of it; what start and stop count is the source's affair."""
        return Slice(self.url, start, stop, self.size, self.fingerprint)


class FileSource(Source):
    """A source made of files."""

    usual: ClassVar[tuple[str, ...]] = ("*",)

    urls: list[str] = Field(min_length=1)
    """Files, folders or globs: local paths (~ is the home directory) or any URL that fsspec reads."""

    options: dict[str, Any] = {}
    """fsspec options of the URLs, for example {endpoint_url: …}. Take credentials from the environment instead."""

    pattern: str | None = None
    """Which files of a folder to take: "*.py" looks at the name, "src/**/*.py" at the path inside the folder.
    By default those with the form's usual names. Hidden files and __pycache__ are skipped."""

    exclude: list[str] = []
    """Files to leave out, as globs like those of `pattern`."""

    @field_validator("urls")
    @classmethod
    def _plain(cls, urls: list[str]) -> list[str]:
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
        wanted = [self.pattern] if self.pattern else list(self.usual)
        found: dict[str, File] = {}
        for url in self.urls:
            matching = list(_matching(absolute(url), self.options, _matcher(wanted), _matcher(self.exclude)))
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
                raise _changed(file.url)

    def check(self, part: Slice) -> None:
        """Raises CorpusChanged unless the file is still the one that was planned."""
        try:
            file = look(part.url, self.options)
        except FileNotFoundError as error:
            raise CorpusChanged(
                f"the planned corpus file {part.url} vanished: restore it, or label what is left into a new store"
            ) from error
        if file.fingerprint != part.fingerprint or file.size != part.size:
            raise _changed(part.url)

    @contextmanager
    def open(self, part: Slice) -> Iterator[BinaryIO]:
        """The planned file, seekable and buffered, checked before and after it was read."""
        self.check(part)
        try:
            with open_file(part.url, self.options) as file:
                yield file
        except FileNotFoundError as error:
            raise CorpusChanged(
                f"the planned corpus file {part.url} vanished while it was read: restore it"
            ) from error
        self.check(part)

    def name(self, url: str) -> str:
        """A file's name in record keys: relative to the common root of the configured URLs."""
        roots = [_fixed(absolute(item))[0] for item in self.urls]
        parts = os.path.commonprefix([root.split("/") for root in roots])
        root = "/".join(parts)
        if url == root:
            return url.rpartition("/")[2]
        inside = url.startswith(root + "/") and not root.endswith("/")
        return url[len(root) + 1 :].lstrip("/") if inside else url


def pack(parts: Iterable[tuple[Slice, int]], unit_bytes: int) -> Iterator[Unit]:
    """Units of consecutive slices, each with its estimated bytes, that stay within unit_bytes if they can."""
    held: list[Slice] = []
    size = 0
    for part, weight in parts:
        if held and size + weight > unit_bytes:
            yield Unit(tuple(held), size)
            held, size = [], 0
        held.append(part)
        size += weight
    if held:
        yield Unit(tuple(held), size)


def cut(total: int, most: int) -> Iterator[tuple[int, int]]:
    """Ranges of nearly equal length, at most `most`, that cover 0 to total."""
    pieces = -(-total // most)
    for i in range(pieces):
        yield total * i // pieces, total * (i + 1) // pieces


def absolute(url: str) -> str:
    """The URL as slices name it: an absolute local path without "~" and "..", or the URL as it is."""
    if get_protocol(url) in ("file", "local"):
        path = re.sub(r"^(file|local)://", "", url)
        return os.path.abspath(os.path.expanduser(path))
    return url.rstrip("/")


def is_local(url: str) -> bool:
    """Whether the URL, made absolute, is a path of this machine."""
    return "://" not in url


def look(url: str, options: Mapping[str, Any]) -> File:
    """One file as it is now. Raises FileNotFoundError, also for a folder."""
    if is_local(url):
        return _local(url, os.stat(url))
    fs, path = _filesystem(url, options)
    info = fs.info(path)
    if info["type"] == "directory":
        raise FileNotFoundError(url)
    return File(url, int(info["size"] or 0), fingerprint(info))


def open_file(url: str, options: Mapping[str, Any]) -> BinaryIO:
    """The file for reading, seekable, with a readline that takes a limit."""
    if is_local(url):
        return open(url, "rb", buffering=1 << 20)
    fs, path = _filesystem(url, options)
    return io.BufferedReader(fs.open(path, "rb"), buffer_size=1 << 20)


def fingerprint(info: Mapping[str, Any]) -> str:
    """What tells this content of a remote file from another: its etag, else modification time and size.

    A filesystem that gives neither leaves the size alone, and a change of equal length goes unnoticed there.
    """
    for key in ("ETag", "etag", "md5Hash", "content_md5", "blob_id", "checksum"):
        if info.get(key):
            return str(info[key]).strip('"')
    for key in ("mtime", "LastModified", "last_modified", "updated", "modified", "created"):
        if info.get(key):
            return f"{info[key]}-{info['size']}"
    return f"-{info['size']}"


def _local(path: str, status: os.stat_result) -> File:
    if not stat.S_ISREG(status.st_mode):
        raise FileNotFoundError(path)
    return File(path, status.st_size, f"{status.st_mtime_ns}-{status.st_size}")


def _changed(url: str) -> CorpusChanged:
    return CorpusChanged(
        f"the corpus file {url} is no longer the one that was planned: restore it, or label it into a new store"
    )


def _filesystem(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """Without fsspec's listing cache: it would show a changed file as it was when it was planned."""
    try:
        return fsspec.url_to_fs(url, use_listings_cache=False, **options)
    except (ImportError, ValueError, TypeError) as error:
        raise ConfigError(f"the corpus URL {url} cannot be opened: {error}") from error


def _fixed(url: str) -> tuple[str, str | None]:
    """A glob's folder without wildcards, and the rest; a plain URL and None."""
    if not MAGIC.search(url):
        return url, None
    parts = url.split("/")
    first = next(i for i, part in enumerate(parts) if MAGIC.search(part))
    return "/".join(parts[:first]) or "/", "/".join(parts[first:])


def _matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Whether a path relative to the corpus folder fits one of the globs; one without "/" looks at the name."""
    expressions = [(re.compile(glob_translate(p)), "/" in p) for p in patterns]

    def matches(path: str) -> bool:
        name = path.rpartition("/")[2]
        return any(expression.match(path if whole else name) for expression, whole in expressions)

    return matches


def _matching(
    url: str, options: Mapping[str, Any], wanted: Callable[[str], bool], excluded: Callable[[str], bool]
) -> Iterator[File]:
    try:
        try:
            file = look(url, options)  # a file may have "[" in its name, so this comes before globs
        except FileNotFoundError:
            root, glob = _fixed(url)
        else:
            if not excluded(url.rpartition("/")[2]):
                yield file
            return
        depth = None
        if glob is not None:
            wanted = _matcher(["./" + glob])
            depth = None if "**" in glob else glob.count("/") + 1
        walk = _walk_local(root, depth) if is_local(root) else _walk_remote(root, depth, options)
        for path, make in walk:
            if wanted(path if glob is None else "./" + path) and not excluded(path):
                yield make()
    except OSError as error:
        raise CorpusUnreadable(f"the corpus {url} cannot be listed: {error}") from error


def _skipped(name: str) -> bool:
    return name.startswith(".") or name in CACHES


def _walk_local(root: str, depth: int | None) -> Iterator[tuple[str, Callable[[], File]]]:
    """Relative paths of a folder's files. Links to folders are followed; no folder is entered twice, so a loop ends."""
    if not os.path.isdir(root):
        return
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True, onerror=_raise):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        inside = os.path.relpath(folder, root)
        level = 0 if inside == "." else inside.count("/") + 1
        folders[:] = (
            sorted(n for n in folders if not _skipped(n)) if depth is None or level + 1 < depth else []
        )
        for name in names:
            if not _skipped(name):
                path = os.path.join(folder, name)
                yield os.path.relpath(path, root), lambda path=path: _found(path)


def _found(path: str) -> File:
    try:
        return _local(path, os.stat(path))
    except FileNotFoundError as error:
        raise CorpusUnreadable(
            f"the corpus entry {path} is no readable file (a dangling link?): mend it, or exclude it"
        ) from error


def _raise(error: OSError) -> None:
    raise error


def _walk_remote(
    root: str, depth: int | None, options: Mapping[str, Any]
) -> Iterator[tuple[str, Callable[[], File]]]:
    fs, path = _filesystem(root, options)
    for name, info in fs.find(path, maxdepth=depth, detail=True).items():
        inside = name[len(path) :].strip("/")
        if info["type"] != "file" or not inside or any(_skipped(part) for part in inside.split("/")):
            continue
        file = File(fs.unstrip_protocol(name), int(info["size"] or 0), fingerprint(info))
        yield inside, lambda file=file: file
