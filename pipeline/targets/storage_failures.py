"""What a storage's failures mean, in words that a person can act on; files whose failures are such.

It knows errors, and no storage.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, BinaryIO

Failures = Callable[[str], AbstractContextManager[None]]
"""While entered, what fails is a storage's failure to be "written", "read" …; see `Storage.failures`."""

EXPIRED = ("ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired", "400")
"""S3's codes for credentials that were good once; the answer to a HEAD has a status alone."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_FOLDER = (errno.ENOTDIR, errno.EEXIST)


def cure(error: Exception, options: Mapping[str, Any]) -> str:
    """What is wrong and what to do about it. options: fsspec's, whose secrets are left out of the words."""
    code = error.errno if isinstance(error, OSError) else None
    if _error_code(error) in EXPIRED:
        return "the credentials have expired: renew them, then run the same command again"
    if code in _FULL:
        return "the storage is full: free space or move the store, then run the same command again"
    if code in _DENIED or isinstance(error, PermissionError):
        return "permission denied or read-only: give this user the right to write there, or another URL"
    if code in _NO_FOLDER:
        return "a file stands where the store needs a folder: remove it, or give another URL"
    if isinstance(error, FileNotFoundError):
        return "no such bucket or folder: create it, or give another URL"
    if isinstance(error, ImportError):
        return f"{error}: install the package, for S3 with `pip install decant-kd[s3]`"
    text = str(error)
    for secret in _secrets(options):
        text = text.replace(secret, "***")
    return " ".join(text.split()) or type(error).__name__


def http_status(error: OSError) -> int | None:
    """The HTTP status behind an error of s3fs: its own translation of it depends on the server."""
    status = _response(error).get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status if isinstance(status, int) else None


def _error_code(error: Exception) -> str | None:
    """The S3 server's word for it, for example "SlowDown"."""
    code = _response(error).get("Error", {}).get("Code")
    return code if isinstance(code, str) else None


def _response(error: Exception) -> Mapping[str, Any]:
    """The answer behind an error of s3fs, empty if there was none."""
    response = getattr(error.__cause__, "response", None)
    return response if isinstance(response, Mapping) else {}


def _secrets(options: Mapping[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _secrets(value)
        elif isinstance(value, str) and value and any(w in name for w in ("key", "secret", "token", "pass")):
            yield value


class Sink:
    """A file being uploaded: what fails in writing it is the storage's failure, whoever writes."""

    def __init__(self, file: BinaryIO, failures: Failures) -> None:
        self._file, self._failures = file, failures

    def write(self, data: Any) -> int:
        with self._failures("written"):
            return self._file.write(data)


class Source(io.RawIOBase):
    """A remote file that is read in parts: that it cannot be reached is no flaw of what is in it."""

    def __init__(self, file: Any, failures: Failures) -> None:
        super().__init__()
        self._file, self._failures = file, failures

    def read(self, size: int = -1, /) -> bytes:
        with self._failures("read"):
            data: bytes = self._file.read(size)
            return data

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()
