"""The files that an import reads: listed once, known by their content, opened by their name in the source.

It knows file systems and checksums; what is inside a file it does not know. Names are relative to the source,
so a source that has been moved or copied is still the same source.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, BinaryIO

import fsspec

from pipeline.corpus.listing import File, absolute, fingerprint, is_local, look, open_file
from pipeline.targets.errors import ConfigError, CorpusChanged, CorpusMissing, CorpusUnreadable, DecantError
from pipeline.targets.unit import Slice

CHUNK_BYTES = 1 << 20


class Source:
    """A file, or a folder of files, anywhere fsspec reaches."""

    def __init__(self, url: str, patterns: tuple[str, ...], options: Mapping[str, Any] | None = None) -> None:
        """patterns: globs of the wanted files' own names. options: fsspec's.

        Raises CorpusMissing when nothing matches, CorpusUnreadable when it cannot be listed.
        """
        self.url = absolute(url)
        self.options = dict(options or {})
        listed = _listed(self.url, self.options)
        self.files: dict[str, File] = {
            name: listed[name]
            for name in sorted(listed)
            if any(fnmatchcase(name.rpartition("/")[2], pattern) for pattern in patterns)
        }
        """By name, sorted."""
        if not self.files:
            raise CorpusMissing(
                f"{url} has no file like {' or '.join(patterns)}: check the path and the format"
            )
        self._sha256: dict[str, str] = {}

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files.values())

    def fingerprint(self, progress: Callable[[int], None] | None = None) -> str:
        """SHA-256 of all files' names, sizes and SHA-256; each is read once. progress: takes bytes."""
        for name in self.files:
            if name not in self._sha256:
                self._sha256[name] = self._digest(name, progress)
        listing = [[name, file.size, self._sha256[name]] for name, file in self.files.items()]
        return hashlib.sha256(json.dumps(listing, ensure_ascii=True).encode()).hexdigest()

    def slice(self, name: str, start: int, stop: int) -> Slice:
        """A part of a file, for a unit; what start and stop count is the format's affair."""
        if name not in self._sha256:
            self._sha256[name] = self._digest(name, None)
        return Slice(name, start, stop, self.files[name].size, self._sha256[name])

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """A file of the source, seekable, checked before and after it was read.

        Raises CorpusChanged when it is no longer the one that was listed, CorpusUnreadable.
        """
        file = self.files.get(name)
        if file is None:
            raise CorpusChanged(
                f"{self.url} has no file {name} any more: restore it, or import into a new store"
            )
        self._check(name, file)
        try:
            with open_file(file.url, self.options) as opened:
                yield opened
        except OSError as error:
            raise CorpusUnreadable(f"{file.url} cannot be read: {error}") from error
        self._check(name, file)

    def where(self, name: str) -> str:
        """The file's own path or URL, for messages."""
        return self.files[name].url

    def _check(self, name: str, file: File) -> None:
        try:
            now = look(file.url, self.options)
        except FileNotFoundError:
            now = None
        if now is None or (now.size, now.fingerprint) != (file.size, file.fingerprint):
            raise CorpusChanged(
                f"{file.url} changed while it was imported: wait until it is written, run again"
            )

    def _digest(self, name: str, progress: Callable[[int], None] | None) -> str:
        digest = hashlib.sha256()
        with self.open(name) as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                if progress is not None:
                    progress(len(chunk))
        return digest.hexdigest()


def _listed(url: str, options: Mapping[str, Any]) -> dict[str, File]:
    """Every file by its name in the source, hidden ones too: Zarr keeps its metadata in such."""
    try:
        fs, path = fsspec.url_to_fs(url, use_listings_cache=False, **options)
        if not fs.exists(path):
            raise CorpusMissing(f"there is nothing at {url}: check the path")
        if fs.isfile(path):
            file = look(url, options)
            return {file.url.rpartition("/")[2]: file}
        found = fs.find(path, detail=True)
        if is_local(url):
            return {name[len(path) :].lstrip("/"): look(name, options) for name in found}
        return {
            name[len(path) :].lstrip("/"): File(
                fs.unstrip_protocol(name), int(info["size"] or 0), fingerprint(info)
            )
            for name, info in found.items()
        }
    except DecantError:
        raise
    except (ImportError, ValueError, TypeError) as error:
        raise ConfigError(f"the source {url} cannot be opened: {error}") from error
    except Exception as error:
        # Clients of object stores have errors of their own; each is one sentence here.
        raise CorpusUnreadable(f"the source {url} cannot be listed: {error}") from error
