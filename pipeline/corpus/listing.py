"""Finding files on any filesystem: listed with what tells their contents apart, and opened.

It knows fsspec, globs and local folders; it knows nothing of units, plans or what is inside a file.
"""

from __future__ import annotations

import errno
import io
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import fsspec
from fsspec.utils import get_protocol, glob_translate

from pipeline.targets.errors import ConfigError, CorpusUnreadable, DecantError

CACHES = {"__pycache__"}
BUFFER = 1 << 20
MAGIC = re.compile(r"[*?\[]")

Test = Callable[[str], bool]


@dataclass(frozen=True)
class File:
    """One corpus file. url: an absolute local path, or a full URL; size: bytes."""

    url: str
    size: int
    fingerprint: str


def find(
    url: str, options: Mapping[str, Any], patterns: Sequence[str], exclude: Sequence[str]
) -> Iterator[File]:
    """What an absolute URL stands for: a file, those of a folder that fit a pattern, or those of a glob.

    Hidden files, hidden folders and __pycache__ below a folder or a glob's fixed part are skipped.
    Raises CorpusUnreadable when listing fails, or when an entry is a dangling link.
    """
    excluded = matcher(exclude)
    try:
        try:
            file = look(url, options)  # a file may have "[" in its name, so this comes before globs
        except FileNotFoundError:
            root, glob = fixed(url)
        else:
            if not excluded(url.rpartition("/")[2]):
                yield file
            return
        wanted = matcher(patterns if glob is None else ["./" + glob])
        depth = None if glob is None or "**" in glob else glob.count("/") + 1
        walk = _walk_local(root, depth) if is_local(root) else _walk_remote(root, depth, options)
        for path, found in walk:
            if wanted(path if glob is None else "./" + path) and not excluded(path):
                entry = _regular(found) if isinstance(found, str) else found
                if entry is not None:
                    yield entry
    except OSError as error:
        raise CorpusUnreadable(f"the corpus {url} cannot be listed: {error}") from error


def tree(url: str, options: Mapping[str, Any]) -> list[File]:
    """Every file of a folder, hidden ones too, sorted by URL; none if there is no folder.

    Raises CorpusUnreadable when listing fails.
    """
    try:
        if is_local(url):
            paths = [os.path.join(folder, name) for folder, _, names in os.walk(url) for name in names]
            found = [file for path in paths if (file := _regular(path)) is not None]
        else:
            fs, path = _filesystem(url, options)
            with _reached(url):
                listed = fs.find(path, detail=True)
            found = [
                File(fs.unstrip_protocol(name), int(info["size"] or 0), fingerprint(info))
                for name, info in listed.items()
                if info["type"] == "file"
            ]
    except OSError as error:
        raise CorpusUnreadable(f"the corpus {url} cannot be listed: {error}") from error
    return sorted(found, key=lambda file: file.url)


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
        return _local(url)
    fs, path = _filesystem(url, options)
    with _reached(url):
        info = fs.info(path)
    if info["type"] == "directory":
        raise FileNotFoundError(url)
    return File(url, int(info["size"] or 0), fingerprint(info))


def open_file(url: str, options: Mapping[str, Any], skipping: bool = False) -> BinaryIO:
    """The file for reading, seekable, with a readline that takes a limit.

    skipping: most of the file will be passed over. Then a remote one is fetched a MiB at a time, about what a
    request costs in time, and not in the larger blocks of its filesystem.
    """
    if is_local(url):
        return open(url, "rb", buffering=BUFFER)
    fs, path = _filesystem(url, options)
    with _reached(url):
        opened = fs.open(path, "rb", block_size=BUFFER) if skipping else fs.open(path, "rb")
        return io.BufferedReader(opened, buffer_size=BUFFER)


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


def _local(path: str) -> File:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise FileNotFoundError(errno.ENOENT, "no regular file", path)
    return File(path, status.st_size, f"{status.st_mtime_ns}-{status.st_size}")


def _regular(path: str) -> File | None:
    """None for sockets and the like, and for what vanished since it was listed."""
    try:
        return _local(path)
    except FileNotFoundError as error:
        if os.path.islink(path):
            raise CorpusUnreadable(
                f"the corpus entry {path} is a dangling link: mend or exclude it"
            ) from error
        return None


@contextmanager
def _reached(url: str) -> Iterator[None]:
    """Clients have their own errors for missing credentials and endpoints: each becomes one sentence."""
    try:
        yield
    except (OSError, DecantError):
        raise
    except Exception as error:
        raise CorpusUnreadable(f"the corpus {url} cannot be reached: {error}") from error


def _filesystem(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """Without fsspec's listing cache: it would show a changed file as it was when it was planned."""
    try:
        fs, path = fsspec.url_to_fs(url, use_listings_cache=False, **options)
    except (ImportError, ValueError, TypeError) as error:
        raise ConfigError(f"the corpus URL {url} cannot be opened: {error}") from error
    return fs, path


def fixed(url: str) -> tuple[str, str | None]:
    """A glob's folder without wildcards, and the rest; a plain URL and None."""
    if not MAGIC.search(url):
        return url, None
    parts = url.split("/")
    first = next(i for i, part in enumerate(parts) if MAGIC.search(part))
    return "/".join(parts[:first]) or "/", "/".join(parts[first:])


def matcher(patterns: Sequence[str]) -> Test:
    """Whether a path inside the corpus folder fits one of the globs; one without "/" looks at the name."""
    expressions = [(re.compile(glob_translate(p)), "/" in p) for p in patterns]

    def matches(path: str) -> bool:
        name = path.rpartition("/")[2]
        return any(expression.match(path if whole else name) for expression, whole in expressions)

    return matches


def _skipped(name: str) -> bool:
    return name.startswith(".") or name in CACHES


def _walk_local(root: str, depth: int | None) -> Iterator[tuple[str, str]]:
    """Files of a folder: the path inside it, and the whole path.

    Links to folders are followed, and no folder is entered twice, so a loop of links ends.
    """
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
        deeper = depth is None or level + 1 < depth
        folders[:] = sorted(name for name in folders if deeper and not _skipped(name))
        for name in names:
            if not _skipped(name):
                yield os.path.normpath(os.path.join(inside, name)), os.path.join(folder, name)


def _raise(error: OSError) -> None:
    raise error


def _walk_remote(root: str, depth: int | None, options: Mapping[str, Any]) -> Iterator[tuple[str, File]]:
    """Files below a prefix: the path inside it, and the file. One listing tells their fingerprints too."""
    fs, path = _filesystem(root, options)
    with _reached(root):
        listed = fs.find(path, maxdepth=depth, detail=True)
    for name, info in listed.items():
        inside = name[len(path) :].strip("/")
        if info["type"] == "file" and inside and not any(_skipped(part) for part in inside.split("/")):
            yield inside, File(fs.unstrip_protocol(name), int(info["size"] or 0), fingerprint(info))
