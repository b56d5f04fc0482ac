"""Text files, source trees: each file is one record, and a unit holds many.

It knows UTF-8 and what a source tree holds besides sources: no markup, no language, no tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import PositiveInt

from pipeline.corpus.base import Filtered, Read
from pipeline.corpus.whole_files import Undecodable, WholeFiles
from pipeline.targets.unit import Slice

FOREIGN_FOLDERS = (
    *("node_modules", "bower_components", "vendor", "third_party", "site-packages", "venv"),
    *("build", "dist", "target", "out", "coverage", "htmlcov"),
)
"""Folders of what others wrote, or a tool made."""

FOREIGN_FILES = (
    *(
        "*.min.js",
        "*.min.css",
        "*.map",
        "*.bundle.js",
        "*.lock",
        "package-lock.json",
        "pnpm-lock.yaml",
        "go.sum",
    ),
    *("*_pb2.py", "*_pb2_grpc.py", "*.pb.go", "*.pb.cc", "*.pb.h"),
)
"""Names of files that a tool makes."""

SNIFFED_BYTES = 8000
"""A zero among so many first bytes is what git, too, takes a binary file by."""


class TextFiles(WholeFiles):
    """UTF-8 files; a record is {"text": str}, its key the file's path below the URLs' common root."""

    usual: ClassVar[tuple[str, ...]] = ("*",)

    kind: Literal["text"] = "text"
    """Plain text files."""

    unit_bytes: PositiveInt = 8 << 20
    """Bytes of files that make a unit; a larger file is a unit by itself."""

    max_file_bytes: PositiveInt = 64 << 20
    """A larger file is quarantined, not read."""

    def value(self, data: bytes) -> Mapping[str, Any] | None:
        return {"text": decoded(data)}


class SourceTree(WholeFiles):
    """The sources of programs; a record is {"text": str}, its key the file's path below the common root.

    What a tree holds besides is left out: hidden files, vendored and generated ones, binary and large ones.
    """

    usual: ClassVar[tuple[str, ...]] = ("*",)

    decides: ClassVar[frozenset[str]] = WholeFiles.decides | {"max_file_bytes"}

    kind: Literal["source_tree"] = "source_tree"
    """Trees of source files."""

    foreign: bool = False
    """Whether to take vendored and generated files too: those in folders such as node_modules, vendor, build,
    and those with names such as *.min.js, *.lock, *_pb2.py."""

    unit_bytes: PositiveInt = 8 << 20
    """Bytes of files that make a unit; a larger file is a unit by itself."""

    max_file_bytes: PositiveInt = 1 << 20
    """A larger file is data or generated, and is left out."""

    def excluded(self) -> list[str]:
        if self.foreign:
            return self.exclude
        folders = [f"{start}{folder}/**" for folder in FOREIGN_FOLDERS for start in ("", "**/")]
        return [*self.exclude, *folders, *FOREIGN_FILES]

    def value(self, data: bytes) -> Mapping[str, Any] | None:
        return None if b"\0" in data[:SNIFFED_BYTES] else {"text": decoded(data)}

    def too_large(self, key: str, row: int, part: Slice) -> Read:
        return Filtered(key, row)


def decoded(data: bytes) -> str:
    """The text of a UTF-8 file, without its byte order mark. Raises Undecodable."""
    try:
        return data.removeprefix(b"\xef\xbb\xbf").decode()
    except UnicodeDecodeError as error:
        raise Undecodable(f"is not UTF-8: byte {data[error.start]:#04x} at {error.start}") from error
