"""Logits in Zarr arrays, of version 2 or 3: a folder that is an array, or holds any number of them.

It knows where Zarr keeps its metadata. A codec that is not known to only move numbers is refused before Zarr
sees the data: one of them unpickles. A chunk that is not there is a half-written array, not zeros.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from pipeline.interchange.arrays import BESIDE, BLOCK_BYTES, LogitArrays, Table, table_of
from pipeline.interchange.source import Source
from pipeline.targets.codecs.base import Array
from pipeline.targets.errors import ConfigError, CorpusUnreadable, UserError
from pipeline.targets.spec import Spec
from pipeline.targets.unit import Slice

METADATA = {"zarr.json": 3, ".zarray": 2}
"""Files that describe an array, and the version of Zarr that they belong to."""

HARMLESS = {"bytes", "endian", "transpose", "shuffle", "delta", "bitround", "fixedscaleoffset"} | {
    *("blosc", "zstd", "gzip", "zlib", "lz4", "bz2", "lzma", "crc32", "crc32c", "adler32", "sharding_indexed")
}
"""Zarr codecs that only move numbers."""


class ZarrArrays(LogitArrays):
    """Logits in Zarr."""

    patterns: ClassVar[tuple[str, ...]] = ("*",)

    def spec(self, source: Source) -> Spec:
        return self.specified("zarr", source)

    def names(self, source: Source) -> list[str]:
        folders = set()
        for name in source.files:
            folder, _, file = name.rpartition("/")
            if file in METADATA and _is_array(self._metadata(source, name)):
                folders.add(folder)
        beside = set() if self.member else set(BESIDE)
        return sorted(
            folder
            for folder in folders
            if self.member in (None, last := folder.rpartition("/")[2]) and last not in beside
        )

    def table(self, source: Source, name: str) -> Table:
        where = f"{source.url}/{name}".rstrip("/")
        self._check_codecs(source, name)
        array = _open(source, name)
        found = table_of(where, tuple(array.shape), np.dtype(array.dtype))
        there, wanted = array.nchunks_initialized, array.nchunks
        if there < wanted:
            raise CorpusUnreadable(
                f"{where} has {there} of {wanted} chunks: it is half-written, or copied in part"
            )
        return found

    def part(self, source: Source, name: str, start: int, stop: int) -> Slice:
        return Slice(name, start, stop, source.size, source.fingerprint())

    def blocks(self, source: Source, part: Slice) -> Iterator[tuple[int, Array]]:
        array = _open(source, part.url)
        rows = max(1, BLOCK_BYTES // (int(np.prod(array.shape[1:])) * array.dtype.itemsize))
        for first in range(part.start, part.stop, rows):
            try:
                yield first, np.asarray(array[first : min(first + rows, part.stop)])
            except (OSError, RuntimeError, ValueError) as error:
                raise CorpusUnreadable(
                    f"{source.url}/{part.url} does not decode at row {first}: {error}"
                ) from error

    def tokens(self, source: Source, name: str) -> Array | None:
        folder = name.rpartition("/")[0]
        for member in BESIDE:
            path = f"{folder}/{member}".lstrip("/")
            if name and any(f"{path}/{file}" in source.files for file in METADATA):
                self._check_codecs(source, path)
                return np.asarray(_open(source, path)[:])
        return None

    def _check_codecs(self, source: Source, name: str) -> None:
        """Raises ConfigError for a codec that is not known to be harmless."""
        for file in METADATA:
            path = f"{name}/{file}".lstrip("/")
            if path not in source.files:
                continue
            for codec in _codecs(self._metadata(source, path)):
                if codec.removeprefix("numcodecs.") not in HARMLESS:
                    raise ConfigError(
                        f"{source.url}/{name} uses the Zarr codec {codec!r}, which is not known to be "
                        "harmless: store it again with zstd or blosc"
                    )

    def _metadata(self, source: Source, name: str) -> Mapping[str, Any]:
        with source.open(name) as file:
            try:
                found = json.load(file)
            except ValueError as error:
                raise CorpusUnreadable(f"{source.where(name)} is no JSON: copy it again") from error
        if not isinstance(found, dict):
            raise CorpusUnreadable(f"{source.where(name)} is no Zarr metadata: copy it again")
        return found


def _is_array(metadata: Mapping[str, Any]) -> bool:
    return str(metadata.get("node_type", "array")) == "array"


def _codecs(metadata: Mapping[str, Any]) -> Iterator[str]:
    """The names of all codecs of an array, those within a shard too."""
    waiting = [metadata.get("codecs"), metadata.get("compressor"), metadata.get("filters")]
    while waiting:
        item = waiting.pop()
        if isinstance(item, list):
            waiting.extend(item)
        elif isinstance(item, dict):
            yield str(item.get("name", item.get("id")))
            configuration = item.get("configuration")
            if isinstance(configuration, dict):
                waiting += [configuration.get("codecs"), configuration.get("index_codecs")]
        elif isinstance(item, str):
            yield item


def _open(source: Source, name: str) -> Any:
    try:
        import zarr
    except ImportError as error:
        raise UserError("reading Zarr needs zarr: pip install 'decant-kd[zarr]'") from error
    try:
        return zarr.open_array(source.url, path=name, mode="r", storage_options=source.options or None)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise CorpusUnreadable(f"{source.url}/{name} is no Zarr array that can be read: {error}") from error
