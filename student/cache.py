"""Tables of shards in a directory of this machine, shared by ranks, jobs and students: bounded, crash-safe.

It knows files and Arrow, and nothing of stores. What is kept is the decoded table, memory-mapped: a later
epoch, and every other process, neither downloads, checks nor decodes a shard again, and they share its pages.

fsspec's caches (simplecache, filecache, blockcache) were not made for that: they have no bound in bytes and
evict nothing but by age, two processes that miss one file both download it, a download is written under its
final name, and nothing is ever compared with a checksum.

- A file is written under another name, synced, and renamed: it is there whole or not at all.
- Who makes a table holds a lock of the file system's, which the system frees when its holder is killed;
  others wait for it rather than make the table too.
- A file ends with a checksum of its bytes, compared when a process first maps it; a wrong one is made again.
- Before a file is written its bytes are set aside, and the files least recently used are removed. What is
  mapped stays readable until it is let go.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import struct
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from pipeline.targets.errors import UserError
from pipeline.targets.spec import Spec
from student.config import ReadingConfig
from student.table import Table, from_arrow, to_arrow

_LOCKS = 256
"""Files that are locked, so that their number does not grow with the tables'."""

_WRITING = "writing-"
"""How names begin of files that are not whole yet."""

_TRAILER = struct.Struct("<QQ")
"""Of a file: bytes before it, and their checksum."""


class Cache:
    """A directory that holds at most `limit` bytes of tables. Several threads and processes may use it."""

    def __init__(self, directory: str | os.PathLike[str], limit: int) -> None:
        """Raises UserError for a directory that cannot be written to."""
        self.directory, self.limit = Path(directory), limit
        self._checked: set[str] = set()
        try:
            for folder in ("tables", "locks"):
                (self.directory / folder).mkdir(parents=True, exist_ok=True)
            with self._locked("probe"):
                pass
        except OSError as error:
            raise UserError(
                f"the cache {directory} cannot be used ({error.strerror}): give another directory"
            ) from error

    @classmethod
    def of(cls, reading: ReadingConfig) -> Cache | None:
        """The configured one, if there is."""
        return None if reading.cache is None else cls(reading.cache, int(reading.cache_gigabytes * 1e9))

    def table(self, name: str, spec: Spec, make: Callable[[], Table]) -> Table:
        """The table of that name, made and kept if it is not there.

        name: hexadecimal digits that stand for the table's content. One that is larger than the whole cache,
        or that the disk has no room for, is not kept. Raises what `make` raises.
        """
        path = self.directory / "tables" / name
        if (found := self._mapped(path, spec)) is not None:
            return found
        with self._locked(f"{int(name[:8], 16) % _LOCKS:02x}"):
            if (found := self._mapped(path, spec)) is not None:
                return found
            made = make()
            self._keep(path, made)
        return self._mapped(path, spec) or made

    def _mapped(self, path: Path, spec: Spec) -> Table | None:
        try:
            with open(path, "rb") as file:
                os.utime(file.fileno())  # used just now
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            table = from_arrow(spec, self._content(path.name, data))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
            path.unlink(missing_ok=True)
            return None
        self._checked.add(path.name)
        return table

    def _content(self, name: str, data: mmap.mmap) -> pa.RecordBatch:
        """Raises ValueError for a file that is not what was written."""
        if len(data) < _TRAILER.size:
            raise ValueError("it is cut off")
        size, checksum = _TRAILER.unpack_from(data, len(data) - _TRAILER.size)
        if size != len(data) - _TRAILER.size or (name not in self._checked and _sum(data, size) != checksum):
            raise ValueError("its checksum is wrong")
        return pa.ipc.open_file(pa.py_buffer(data).slice(0, size)).get_batch(0)

    def _keep(self, path: Path, table: Table) -> None:
        batch = to_arrow(table)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        content = sink.getvalue()
        try:
            with self._set_aside(content.size + _TRAILER.size) as file:
                if file is None:
                    return
                file.write(content)
                file.write(_TRAILER.pack(content.size, _sum(content, content.size)))
                file.flush()
                os.fsync(file.fileno())
                os.rename(file.name, path)
        except OSError as error:
            warnings.warn(f"the cache {self.directory} keeps no more tables: {error}", stacklevel=2)

    @contextlib.contextmanager
    def _set_aside(self, size: int) -> Iterator[BinaryIO | None]:
        """A file of that size and of another name, which is gone afterwards unless it was renamed; None if it
        is too large for the cache.
        """
        if size > self.limit:
            yield None
            return
        temporary = self.directory / "tables" / f"{_WRITING}{uuid.uuid4().hex}"
        with self._locked("eviction"):
            self._evict(self.limit - size)
            file = open(temporary, "xb")  # noqa: SIM115
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            with file:
                file.truncate(size)  # so that whoever evicts counts it already
                yield file
        finally:
            temporary.unlink(missing_ok=True)

    def _evict(self, most: int) -> None:
        """Remove what was used longest ago until at most so many bytes are left, and what the killed left."""
        found = []
        for entry in os.scandir(self.directory / "tables"):
            with contextlib.suppress(FileNotFoundError):
                if entry.name.startswith(_WRITING) and _abandoned(entry.path):
                    os.unlink(entry.path)
                    continue
                status = entry.stat()
                found.append((status.st_mtime_ns, status.st_size, entry))
        total = sum(size for _, size, _ in found)
        for _, size, entry in sorted(found, key=lambda each: each[0]):
            if total <= most:
                return
            if not entry.name.startswith(_WRITING):
                Path(entry.path).unlink(missing_ok=True)
                total -= size

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with open(self.directory / "locks" / name, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _abandoned(path: str) -> bool:
    """Whether whoever wrote the file is gone, and its lock with it."""
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def _sum(data: mmap.mmap | pa.Buffer, size: int) -> int:
    """Of the bytes as whole words, modulo 2^64: as fast as they are read, which no stronger one in Python
    is."""
    words = np.frombuffer(data, "<u8", size // 8)
    rest = np.frombuffer(data, np.uint8, size % 8, size - size % 8)
    return (int(words.sum(dtype=np.uint64)) + int.from_bytes(rest.tobytes(), "little")) % 2**64
