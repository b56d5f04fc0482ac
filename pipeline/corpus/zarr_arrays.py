"""Zarr arrays, of version 2 or 3: a folder that is an array, or holds any number of them.

It knows where Zarr keeps its metadata; a record is a row of the first dimension. A codec that is not known to
only move numbers is refused before Zarr sees the data: one of them unpickles. A chunk that is not there is a
half-written array, not zeros.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import PositiveInt

from pipeline.corpus.base import NOTHING_PLANNED, Read, Record
from pipeline.corpus.files import FileSource, cut, pack, part_of
from pipeline.corpus.listing import File, fixed, matcher, open_file, tree
from pipeline.targets.errors import ConfigError, CorpusChanged, CorpusUnreadable, UserError
from pipeline.targets.unit import Slice, Unit

METADATA = {"zarr.json": 3, ".zarray": 2}
"""Files that describe an array, and the version of Zarr that they belong to."""

HARMLESS = {"bytes", "endian", "transpose", "shuffle", "delta", "bitround", "fixedscaleoffset"} | {
    *("blosc", "zstd", "gzip", "zlib", "lz4", "bz2", "lzma", "crc32", "crc32c", "adler32", "sharding_indexed")
}
"""Zarr codecs that only move numbers."""

BLOCK_BYTES = 4 << 20
METADATA_BYTES = 16 << 20


class ZarrArrays(FileSource):
    """Zarr arrays; a record is {"array": ndarray}, a row of the first dimension, its key `<array>#<row>`.

    An array is planned as a whole: its fingerprint is that of all its files. To add rows, add an array.
    """

    decides: ClassVar[frozenset[str]] = FileSource.decides | {"member"}

    kind: Literal["zarr"] = "zarr"
    """Zarr. `urls` are folders that are arrays or hold some; pattern and exclude look at paths of arrays."""

    member: str | None = None
    """The name of the arrays to take, where a group has others beside them."""

    unit_rows: PositiveInt = 4096
    """Rows that make a unit, at most."""

    def find(self, url: str, patterns: Sequence[str]) -> Iterator[File]:
        root, glob = fixed(url)
        wanted = matcher(patterns if glob is None else ["./" + glob, "./" + glob + "/**"])
        excluded = matcher(self.exclude)
        for folder, files in self._folders(root).items():
            inside = folder[len(root) :].strip("/")
            test = (inside or folder) if glob is None else "./" + inside
            if (
                self.member in (None, folder.rpartition("/")[2])
                and wanted(test)
                and not excluded(inside or folder)
            ):
                yield as_file(folder, files)

    def look(self, url: str) -> File:
        files = self._folders(url).get(url)
        if files is None:
            raise FileNotFoundError(url)
        return as_file(url, files)

    def _folders(self, root: str) -> dict[str, list[File]]:
        """The files of each array below a folder, by the array's URL."""
        listed = tree(root, self.options)
        arrays = {
            file.url.rpartition("/")[0]: [file]
            for file in listed
            if file.url.rpartition("/")[2] in METADATA and is_array(self._metadata(file.url))
        }
        for file in listed:
            folder = file.url.rpartition("/")[0]
            while len(folder) >= len(root) and folder not in arrays:
                folder = folder.rpartition("/")[0]
            if folder in arrays and file != arrays[folder][0]:
                arrays[folder].append(file)
        return arrays

    def units(self, planned: Mapping[str, str] = NOTHING_PLANNED) -> Iterator[Unit]:
        return pack(self._parts(planned), self.unit_rows)

    def _parts(self, planned: Mapping[str, str]) -> Iterator[tuple[Slice, int, int]]:
        for file in self.new_files(planned):
            array = self._open(file.url)
            if (there := array.nchunks_initialized) < array.nchunks:
                raise CorpusUnreadable(
                    f"{file.url} has {there} of {array.nchunks} chunks: copy it again, or, if the others are "
                    "zeros that were left out, store it with write_empty_chunks"
                )
            for start, stop in cut(array.shape[0], self.unit_rows):
                yield part_of(file, start, stop), stop - start, (stop - start) * _row_bytes(array)

    def records(self, unit: Unit) -> Generator[Read, None, None]:
        row = 0
        for part in unit.slices:
            name = self.name(part)
            self.check(part)
            array = self._open(part.url)
            rows = max(1, BLOCK_BYTES // max(1, _row_bytes(array)))
            for first in range(part.start, part.stop, rows):
                try:
                    block = np.asarray(array[first : min(first + rows, part.stop)])
                except (OSError, RuntimeError, ValueError) as error:
                    self.check(part)
                    raise CorpusUnreadable(f"{part.url} does not decode at row {first}: {error}") from error
                for i in range(len(block)):
                    yield Record(f"{name}#{first + i}", row, {"array": block[i, ...]})
                    row += 1
            self.check(part)

    def _metadata(self, url: str) -> Mapping[str, Any]:
        try:
            with open_file(url, self.options) as file:
                found = json.loads(file.read(METADATA_BYTES))
        except FileNotFoundError as error:
            raise CorpusChanged(f"{url} vanished while it was read: restore it") from error
        except (OSError, ValueError, RecursionError) as error:
            raise CorpusUnreadable(f"{url} is no Zarr metadata ({error}): copy it again") from error
        if not isinstance(found, dict):
            raise CorpusUnreadable(f"{url} is no Zarr metadata: copy it again")
        return found

    def _open(self, url: str) -> Any:
        """The array. Raises ConfigError for a codec that is not known to be harmless, CorpusUnreadable."""
        for name in METADATA:
            try:
                metadata = self._metadata(f"{url}/{name}")
            except CorpusChanged:
                continue
            refuse_codecs(url, metadata)
        try:
            import zarr
        except ImportError as error:
            raise UserError("reading Zarr needs zarr: pip install 'decant-kd[zarr]'") from error
        try:
            array = zarr.open_array(url, mode="r", storage_options=self.options or None)
        except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
            raise CorpusUnreadable(f"{url} is no Zarr array that can be read: {error}") from error
        if not array.shape:
            raise CorpusUnreadable(f"{url} holds a single number: store an array with one row a record")
        if np.dtype(array.dtype).kind not in "biuf":
            raise CorpusUnreadable(f"{url} holds {array.dtype}, which are no numbers")
        return array


def as_file(url: str, files: Sequence[File]) -> File:
    """An array as one file: its bytes, and a fingerprint of all its files."""
    listing = sorted([file.url[len(url) :], file.size, file.fingerprint] for file in files)
    digest = hashlib.blake2b(json.dumps(listing).encode(), digest_size=16).hexdigest()
    return File(url, sum(file.size for file in files), digest)


def is_array(metadata: Mapping[str, Any]) -> bool:
    """Whether Zarr metadata describe an array, not a group."""
    return str(metadata.get("node_type", "array")) == "array"


def refuse_codecs(url: str, metadata: Mapping[str, Any]) -> None:
    """Raises ConfigError for a codec that is not known to be harmless."""
    for codec in codecs(metadata):
        if codec.removeprefix("numcodecs.") not in HARMLESS:
            raise ConfigError(
                f"{url} uses the Zarr codec {codec!r}, which is not known to be harmless: "
                "store it again with zstd or blosc"
            )


def codecs(metadata: Mapping[str, Any]) -> Iterator[str]:
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


def _row_bytes(array: Any) -> int:
    return int(np.prod(array.shape[1:], dtype=np.int64)) * int(np.dtype(array.dtype).itemsize)
