"""Logits in Zarr arrays, of version 2 or 3: a folder that is an array, or holds any number of them.

Metadata and codecs are looked at as in a corpus of them. A chunk that is not there is a half-written array,
not zeros.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from pipeline.corpus.zarr_arrays import METADATA, is_array, refuse_codecs
from pipeline.interchange.arrays import BESIDE, BLOCK_BYTES, LogitArrays, Table, table_of
from pipeline.interchange.source import Source
from pipeline.targets.codecs.base import Array
from pipeline.targets.errors import CorpusUnreadable, UserError
from pipeline.targets.spec import Spec
from pipeline.targets.unit import Slice


class ZarrArrays(LogitArrays):
    """Logits in Zarr."""

    patterns: ClassVar[tuple[str, ...]] = ("*",)

    def spec(self, source: Source) -> Spec:
        return self.specified("zarr", source)

    def names(self, source: Source) -> list[str]:
        folders = set()
        for name in source.files:
            folder, _, file = name.rpartition("/")
            if file in METADATA and is_array(self._metadata(source, name)):
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
            refuse_codecs(f"{source.url}/{name}", self._metadata(source, path))

    def _metadata(self, source: Source, name: str) -> Mapping[str, Any]:
        with source.open(name) as file:
            try:
                found = json.load(file)
            except ValueError as error:
                raise CorpusUnreadable(f"{source.where(name)} is no JSON: copy it again") from error
        if not isinstance(found, dict):
            raise CorpusUnreadable(f"{source.where(name)} is no Zarr metadata: copy it again")
        return found


def _open(source: Source, name: str) -> Any:
    try:
        import zarr
    except ImportError as error:
        raise UserError("reading Zarr needs zarr: pip install 'decant-kd[zarr]'") from error
    try:
        return zarr.open_array(source.url, path=name, mode="r", storage_options=source.options or None)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise CorpusUnreadable(f"{source.url}/{name} is no Zarr array that can be read: {error}") from error
