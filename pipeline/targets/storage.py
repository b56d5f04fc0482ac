"""Bytes under names below one URL, on anything fsspec reaches: read, list, upload, and publish exactly once.

It knows nothing of targets, shards or JSON. Its one promise beyond fsspec's is an honest put-if-absent:
of any number of writers of a name exactly one wins, and whoever is killed when, the name holds either
nothing or all of one writer's bytes. Locally that is `os.link` of a synced temporary file (fsspec's own
"create" mode checks and then writes, which is a race); on object stores it is one conditional PUT.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.core import split_protocol

from pipeline.targets.durable import make_folder, sync, synced
from pipeline.targets.errors import StorageError, UserError
from pipeline.targets.storage_failures import Sink, Source, cure, http_status

LOCAL = ("file", "local")
S3 = ("s3", "s3a")
CONDITIONAL = (*S3, "gs", "gcs", "az", "abfs", "abfss")
"""Protocols whose "create" mode is a conditional request that the server decides. Elsewhere fsspec looks
first and writes then, which no test with one writer can tell from the real thing."""

TEMPORARY = "tmp/"
"""Half-written files and probes. Nothing in a store refers to them; `Store.gc` removes what was left."""

PAGE_ENTRIES = 1000
"""Entries that S3 is asked for, or to delete, at a time; it allows no more."""

PART_BYTES = 16 * 2**20
"""Of an upload to an object store: what is in memory of it, however large it becomes."""

PATIENCE: Mapping[str, Any] = {
    "retries": {"mode": "standard", "total_max_attempts": 5},
    "connect_timeout": 10,
    "read_timeout": 60,
}
"""botocore's, for S3: a request that fails for a passing reason (no connection, a reset, a timeout, 429, 5xx)
is tried 5 times, with random waits between them whose bound doubles; s3fs does all of that up to 5 times when
it sees a reset or SlowDown. `config_kwargs` in the options takes precedence, key by key."""


@dataclass(frozen=True)
class Entry:
    """A stored file. name: below the storage's URL; size: bytes; modified: unix seconds."""

    name: str
    size: int
    modified: float


class Storage:
    """The files below one URL.

    url: normalised, local paths absolute; it never holds credentials. Safe to use from several threads, and
    after a fork. Every failure of the storage is raised as StorageError.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        """options: fsspec's, for example {"endpoint_url": …}. Raises UserError for a URL with credentials."""
        protocol, rest = split_protocol(os.fspath(url))
        self.protocol = protocol or "file"
        self.local = self.protocol in LOCAL
        if self.local:
            self._root = os.path.abspath(os.path.expanduser(rest))
            self.url: str = self._root
        else:
            if "@" in rest.split("/", 1)[0]:
                raise UserError(
                    f"a {self.protocol} store URL must not hold credentials: give them by the environment"
                )
            self._root = rest.rstrip("/")
            self.url = f"{self.protocol}://{self._root}"
        self._options = dict(options or {})
        self._opened: tuple[int, Any] | None = None

    @property
    def _fs(self) -> Any:
        """The file system of this process: fsspec's are not fork-safe, and listings must not be cached."""
        pid = os.getpid()
        if self._opened is None or self._opened[0] != pid:
            with self.failures("opened"):
                fs = fsspec.filesystem(self.protocol, **self._settings())
            self._opened = (pid, fs)
        return self._opened[1]

    def _settings(self) -> dict[str, Any]:
        settings = {"use_listings_cache": False, **self._options}
        if self.protocol in S3:
            settings["config_kwargs"] = {**PATIENCE, **(settings.get("config_kwargs") or {})}
        return settings

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Publish the bytes under a name that nobody has taken. True: we did; False: it was there.

        A request that is repeated by the network layer can find its own first try and give False: where
        that matters, the bytes tell who wrote them.
        """
        if self.local:
            return self._link(name, data)
        if self.protocol not in CONDITIONAL:
            raise StorageError(
                f"{self.url}: {self.protocol} storage has no atomic put-if-absent, so two writers could both "
                f"win: use a local directory or one of {', '.join(CONDITIONAL)}"
            )
        with self.failures("written"):
            return self._conditional_put(name, data)

    @contextlib.contextmanager
    def upload(self, name: str) -> Iterator[BinaryIO]:
        """A file to write to, under a name that only this attempt uses.

        On leaving it is durable under its name; when the block raises, nothing is left. Remotely it is sent
        in parts of PART_BYTES, and is there when the last one is.
        """
        if not self.local:
            with self._parts(name) as parts:
                yield cast(BinaryIO, Sink(parts, self.failures))
            return
        with self._temporary() as (temporary, sink):
            yield cast(BinaryIO, Sink(sink, self.failures))
            with self.failures("written"):
                synced(sink)
                os.link(temporary, self._prepared(name))
                sync(os.path.dirname(self._path(name)))

    @contextlib.contextmanager
    def _parts(self, name: str) -> Iterator[Any]:
        """A multipart upload, or one PUT of what is smaller than a part."""
        path = self._path(name)
        with self.failures("written"):
            file = self._fs.open(path, "wb", block_size=PART_BYTES)
        try:
            yield file
            with self.failures("written"):
                size = file.tell()
                try:
                    file.close()
                except Exception:
                    # The answer to the last request may have been lost, and its repetition have found the
                    # upload gone. The name is this attempt's alone: what is there is whole, and ours.
                    if self._size(path) != size:
                        raise
        except BaseException:
            file.closed = True  # else it would be sent when it is collected
            with contextlib.suppress(Exception):
                file.discard()
            raise

    def _size(self, path: str) -> int | None:
        try:
            return int(self._fs.info(path)["size"])
        except FileNotFoundError:
            return None

    def read(self, name: str) -> bytes:
        """All bytes. Raises FileNotFoundError if there is no such file."""
        with self.failures("read", absent=True):
            if self.local:
                with open(self._path(name), "rb") as file:
                    return file.read()
            data: bytes = self._fs.cat_file(self._path(name))
            return data

    def read_many(self, names: Sequence[str]) -> Iterator[tuple[str, bytes | None]]:
        """Small files, remotely many at a time; None for one that is not there."""
        for start in range(0, len(names), 256):
            chunk = names[start : start + 256]
            if self.local:
                for name in chunk:
                    try:
                        yield name, self.read(name)
                    except FileNotFoundError:
                        yield name, None
                continue
            with self.failures("read"):
                # s3fs asks for a file's size first, so as to read a large one in parts.
                whole = {"max_concurrency": 1} if self.protocol in ("s3", "s3a") else {}
                found = self._fs.cat([self._path(name) for name in chunk], on_error="return", **whole)
            for name in chunk:
                data = found[self._path(name)]
                if isinstance(data, FileNotFoundError):
                    yield name, None
                elif isinstance(data, Exception):
                    with self.failures("read"):
                        raise data
                else:
                    yield name, data

    def open(self, name: str) -> BinaryIO:
        """For reading parts of a large file. Raises FileNotFoundError."""
        with self.failures("read", absent=True):
            if self.local:
                return open(self._path(name), "rb")
            file = self._fs.open(self._path(name), "rb", cache_type="readahead", block_size=2**20)
            return cast(BinaryIO, Source(file, self.failures))

    def list(self, prefix: str) -> Iterator[Entry]:
        """The files below a folder named with its slash ("commits/"), at any depth, in no certain order."""
        if self.local:
            yield from self._walk(prefix)
        elif self.protocol in S3:
            yield from self._pages(prefix)
        else:
            with self.failures("listed"):
                found = self._fs.find(self._path(prefix), detail=True)
            strip = len(self._fs._strip_protocol(self._path(""))) + 1
            for path, info in found.items():
                yield Entry(path[strip:], info["size"], _unix(info))

    def delete(self, names: Sequence[str]) -> None:
        """Remove files; one that is gone already is no error."""
        with self.failures("deleted from"):
            for name in names if self.local else ():
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._path(name))
            for start in range(0, 0 if self.local else len(names), PAGE_ENTRIES):
                with contextlib.suppress(FileNotFoundError):
                    self._fs.rm([self._path(name) for name in names[start : start + PAGE_ENTRIES]])

    def probe(self) -> None:
        """Raise StorageError unless files can be written, read and deleted, and put-if-absent is honest."""
        name = f"{TEMPORARY}probe-{uuid.uuid4().hex}"
        first = self.put_if_absent(name, b"first") or self.read(name) == b"first"
        second = self.put_if_absent(name, b"second")
        held = self.read(name)
        self.delete([name])
        if not first or second or held != b"first":
            raise StorageError(
                f"{self.url} overwrites a file that must not be overwritten (it ignores If-None-Match), so "
                "two writers could both win: use a local directory, or storage with conditional writes"
            )

    def _path(self, name: str) -> str:
        if name.startswith("/") or ".." in name.split("/"):
            raise StorageError(f"{self.url}: the name {name!r} would leave the store, it is refused")
        return f"{self._root}/{name}"

    def _prepared(self, name: str) -> str:
        """The path of a name, its folder made."""
        path = self._path(name)
        make_folder(os.path.dirname(path))
        return path

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[tuple[str, BinaryIO]]:
        """A file of no one else's, gone afterwards."""
        with self.failures("written"):
            path = self._prepared(f"{TEMPORARY}{uuid.uuid4().hex}")
            sink = open(path, "xb")  # noqa: SIM115
        try:
            yield path, sink
        finally:
            # Whoever wants the file has synced it. Here it is thrown away, whatever closing still says.
            with contextlib.suppress(OSError):
                sink.close()
            with self.failures("written"):
                os.unlink(path)

    def _link(self, name: str, data: bytes) -> bool:
        with self._temporary() as (temporary, sink), self.failures("written"):
            sink.write(data)
            synced(sink)
            path = self._prepared(name)
            try:
                os.link(temporary, path)
                won = True
            except FileExistsError:
                won = False
            # The loser goes on as if the winner's file stood, so it makes sure of that too.
            sync(os.path.dirname(path))
            return won

    def _conditional_put(self, name: str, data: bytes) -> bool:
        # A multipart upload would be conditional at its completion, which some servers ignore: one PUT.
        single = {"chunksize": 5 * 2**30} if self.protocol in S3 else {}
        for attempt in range(8):
            try:
                self._fs.pipe_file(self._path(name), data, mode="create", **single)
                return True
            except FileExistsError:
                return False
            except OSError as error:
                status = http_status(error)
                if status == 412:
                    return False
                if status != 409:
                    raise
                # 409: another conditional write of the name is under way, and S3 asks to try again.
                time.sleep(0.05 * 2**attempt)
        raise StorageError(f"{self.url}: {name} is being written by others again and again: try later")

    def _walk(self, prefix: str) -> Iterator[Entry]:
        folders = [prefix]
        while folders:
            folder = folders.pop()
            with contextlib.ExitStack() as opened:
                with self.failures("listed"):
                    try:
                        entries = opened.enter_context(os.scandir(self._path(folder)))
                    except FileNotFoundError:
                        continue
                for entry in entries:  # not as a list: each entry would keep what `stat` said
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(f"{folder}{entry.name}/")
                        continue
                    try:
                        status = entry.stat()
                    except FileNotFoundError:
                        continue  # deleted since the folder was read
                    yield Entry(f"{folder}{entry.name}", status.st_size, status.st_mtime)

    def _pages(self, prefix: str) -> Iterator[Entry]:
        """S3's listing page by page: a million entries are never in memory at once."""
        bucket, key, _ = self._fs.split_path(self._path(prefix))
        strip = len(key) - len(prefix)
        token: dict[str, str] = {}
        while True:
            with self.failures("listed"):
                page = self._fs.call_s3(
                    "list_objects_v2", Bucket=bucket, Prefix=key, MaxKeys=PAGE_ENTRIES, **token
                )
            for item in page.get("Contents", ()):
                yield Entry(item["Key"][strip:], item["Size"], item["LastModified"].timestamp())
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    @contextlib.contextmanager
    def failures(self, what: str, absent: bool = False) -> Iterator[None]:
        """Raise whatever the storage raises as StorageError; with `absent`, FileNotFoundError stays."""
        try:
            yield
        except StorageError:
            raise
        except Exception as error:
            # Client libraries raise errors of their own; each is a failure of the storage here.
            if absent and isinstance(error, FileNotFoundError):
                raise
            raise StorageError(
                f"the store {self.url} cannot be {what}: {cure(error, self._options)}"
            ) from error


def _unix(info: Mapping[str, Any]) -> float:
    for name in ("LastModified", "last_modified", "updated", "mtime", "modified"):
        moment = info.get(name)
        if hasattr(moment, "timestamp"):
            return float(moment.timestamp())  # type: ignore[union-attr]
        if isinstance(moment, int | float):
            return float(moment)
    return time.time()  # unknown: as young as can be, so that nothing is taken for abandoned
