"""Folders of images and of sounds: each file is one record, its bytes as they are.

It knows the usual names of such files. Decoding is the views' affair, so a file that is no image comes to
light there, and spoils its own record alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

from pydantic import PositiveInt

from pipeline.corpus.whole_files import WholeFiles

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "jp2")
SOUNDS = ("wav", "flac", "mp3", "ogg", "opus", "m4a")


def named(extensions: Iterable[str]) -> tuple[str, ...]:
    """Patterns of names that end so, in small letters or in capitals."""
    return tuple(f"*.{form}" for extension in extensions for form in (extension, extension.upper()))


class ImageFiles(WholeFiles):
    """Images; a record is {"image": bytes}, its key the file's path below the URLs' common root."""

    usual: ClassVar[tuple[str, ...]] = named(IMAGES)

    kind: Literal["images"] = "images"
    """Image files."""

    unit_bytes: PositiveInt = 256 << 20
    """Bytes of files that make a unit; a larger file is a unit by itself."""

    max_file_bytes: PositiveInt = 64 << 20
    """A larger file is quarantined, not read."""

    def value(self, data: bytes) -> Mapping[str, Any] | None:
        return {"image": data}


class AudioFiles(WholeFiles):
    """Sounds; a record is {"audio": bytes}, its key the file's path below the URLs' common root."""

    usual: ClassVar[tuple[str, ...]] = named(SOUNDS)

    kind: Literal["audio"] = "audio"
    """Audio files."""

    unit_bytes: PositiveInt = 256 << 20
    """Bytes of files that make a unit; a larger file is a unit by itself."""

    max_file_bytes: PositiveInt = 256 << 20
    """A larger file is quarantined, not read."""

    def value(self, data: bytes) -> Mapping[str, Any] | None:
        return {"audio": data}
