"""Reading tars that nobody vouches for, forwards only: headers one by one, contents where they are wanted.

It knows members and bytes; what they mean it does not know, and nothing is ever extracted to a disk. Headers
are parsed by Python's `tarfile`, called header by header, because its own iteration takes a broken header in
the middle for the end of the archive, and reads an extended header into memory whatever size it claims.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

HEADER_BYTES = 1 << 20
"""An extended header that claims more is no header of honest names."""

PIECE_BYTES = 1 << 20


class BrokenTar(ValueError):
    """What is no tar, or ends too early. The message says where."""


@dataclass(frozen=True)
class Member:
    """One member. start, stop: the bytes of the tar that it takes, headers and padding included; size: of its
    content. fault: why it is no plain file inside the archive's own tree; None for one that is.
    """

    name: str
    start: int
    stop: int
    size: int
    is_folder: bool
    fault: str | None


class End(Exception):
    """A block of zeros, which ends a tar."""


class Tape:
    """A stream that goes forwards only, as much of a file as `tarfile` asks for to parse a header."""

    def __init__(self, stream: BinaryIO, start: int) -> None:
        self._stream, self._at, self._can_seek = stream, start, stream.seekable()

    def tell(self) -> int:
        return self._at

    def read(self, size: int) -> bytes:
        """A header, or what extends one. Raises HeaderError for more than that has, or than there is; End."""
        if not 0 <= size <= HEADER_BYTES:
            raise tarfile.HeaderError(f"it claims {size} bytes")
        data = self._stream.read(size)
        self._at += len(data)
        if len(data) < size:
            raise tarfile.HeaderError("the file ends there")
        if size == tarfile.BLOCKSIZE and not any(data):
            raise End
        return data

    def content(self, size: int) -> bytes:
        """Raises BrokenTar when the stream has not so many bytes."""
        content = b"".join(self._pieces(size))
        if len(content) < size:
            raise BrokenTar(f"it ends at byte {self._at}, inside a member")
        return content

    def forward(self, to: int) -> None:
        """Raises BrokenTar when a stream that has to be read ends before."""
        if self._can_seek:
            self._at = self._stream.seek(to)
            return
        for _ in self._pieces(to - self._at):
            pass
        if self._at < to:
            raise BrokenTar(f"it ends at byte {self._at}, inside a member")

    def expect_nothing(self) -> None:
        """Raises BrokenTar when what is left is not zeros alone."""
        while piece := self._stream.read(PIECE_BYTES):
            if any(piece):
                raise BrokenTar(f"something follows the end of the archive at byte {self._at}")

    def _pieces(self, size: int) -> Iterator[bytes]:
        while size > 0 and (piece := self._stream.read(min(size, PIECE_BYTES))):
            self._at += len(piece)
            size -= len(piece)
            yield piece


def members(stream: BinaryIO, start: int = 0, size: int | None = None) -> Iterator[tuple[Member, Tape]]:
    """Each member from a header on, with the tape at its content, which need not be read.

    stream: at `start`, the place of a header. size: bytes of the whole tar, where that is known.
    Raises BrokenTar, also where the blocks of zeros that end a tar are missing, because then more may be.
    """
    tape = Tape(stream, start)
    # An archive without members, whose file is then the tape: its constructor looks for a first one.
    parser = tarfile.TarFile(fileobj=io.BytesIO(bytes(2 * tarfile.BLOCKSIZE)), errors="backslashreplace")
    parser.fileobj = tape  # type: ignore[assignment]
    while True:
        at = tape.tell()
        try:
            info = tarfile.TarInfo.fromtarfile(parser)
        except End:
            tape.expect_nothing()
            return
        except (tarfile.TarError, ValueError, RecursionError, OverflowError) as error:
            raise BrokenTar(f"no header at byte {at}: {error}") from error
        stop = parser.offset
        if info.size < 0 or stop < tape.tell() or (size is not None and stop > size):
            raise BrokenTar(f"the member {info.name!r} at byte {at} does not end inside of it")
        yield Member(info.name, at, stop, info.size, info.isdir(), _fault(info)), tape
        tape.forward(stop)


def _fault(info: tarfile.TarInfo) -> str | None:
    if info.issym() or info.islnk():
        return "a link"
    if not info.isreg() and not info.isdir():
        return "a device or a pipe"
    if info.issparse():
        return "a sparse file"
    if info.name.startswith("/") or ".." in info.name.split("/"):
        return "a path that leaves the archive"
    return None
