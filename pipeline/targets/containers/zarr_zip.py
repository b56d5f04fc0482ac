"""Zarr v3 arrays in an uncompressed zip: how their metadata, shards and chunks are written and read.

It knows zip, JSON and Zarr's sharding codec, and nothing of rows or columns.

The format is written and read here, with pyarrow's zstd, because the library would not do for either. To
write, it wants an array's extent before its first item; to read, it unfolds whatever the metadata claims,
fills in what is missing, and loads codecs by name. Here memory holds one chunk an array and what is
compressed of its current shard; a reader takes exactly the metadata and the chunks that it expects, and a
chunk never unfolds beyond its size. Besides, equal arrays give equal bytes whatever release of the library is
installed, and no event loop runs in a process that may fork. The tests read all of it with the library, and
read here what the library wrote.
"""

from __future__ import annotations

import io
import json
import math
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.targets.containers.base import BROKEN_ZIP
from pipeline.targets.errors import CorruptShard
from pipeline.targets.ragged import Array, offsets_of

CHUNK_BYTES = 2**18
"""Of a chunk as it is in memory, but at least one item."""

SHARD_CHUNKS = 32
"""Chunks that one of Zarr's shards gathers, at most: 8 MiB in memory."""

_LEVEL = 3
_TYPES = {
    "|b1": "bool",
    "|i1": "int8",
    "|u1": "uint8",
    **{
        f"<{kind}{size}": f"{name}{8 * size}"
        for kind, name in (("i", "int"), ("u", "uint"))
        for size in (2, 4, 8)
    },
    **{f"<f{size}": f"float{8 * size}" for size in (2, 4, 8)},
    **{f"<c{size}": f"complex{8 * size}" for size in (8, 16)},
}


@dataclass(frozen=True)
class ArrayType:
    """One array of the group: any number of items of `shape`, of a type that Zarr's core has."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, name: str, dtype: str, shape: tuple[int, ...]) -> ArrayType:
        """A type that Zarr's core lacks is stored as its bytes, one more dimension."""
        if dtype in _TYPES:
            return cls(name, dtype, shape)
        return cls(name, "|u1", (*shape, np.dtype(dtype).itemsize))

    @cached_property
    def item_bytes(self) -> int:
        """Bytes of one item."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @cached_property
    def chunk(self) -> int:
        """Items of a chunk."""
        return max(1, CHUNK_BYTES // self.item_bytes)

    def shards(self, items: int) -> int:
        """How many of Zarr's shards hold so many items."""
        return -(-items // (self.chunk * SHARD_CHUNKS))

    def key(self, shard: int) -> str:
        """The name of one of Zarr's shards."""
        return "/".join([self.name, "c", str(shard), *["0"] * len(self.shape)])

    def metadata(self, items: int) -> dict[str, Any]:
        """The array's zarr.json."""
        endian = {"configuration": {"endian": "little"}}
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [items, *self.shape],
            "data_type": _TYPES[self.dtype],
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": [self.chunk * SHARD_CHUNKS, *self.shape]},
            },
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": [0.0, 0.0] if self.dtype[1] == "c" else np.zeros((), self.dtype).item(),
            "codecs": [
                {
                    "name": "sharding_indexed",
                    "configuration": {
                        "chunk_shape": [self.chunk, *self.shape],
                        "codecs": [
                            {"name": "bytes", **({} if self.dtype[0] == "|" else endian)},
                            {"name": "zstd", "configuration": {"level": _LEVEL, "checksum": False}},
                        ],
                        "index_codecs": [{"name": "bytes", **endian}, {"name": "crc32c"}],
                        "index_location": "end",
                    },
                }
            ],
        }


def _group(attributes: Mapping[str, str]) -> dict[str, Any]:
    return {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}


# Writing


class ZipWriter:
    """The zip being written: files without a date, to a sink that need not seek."""

    def __init__(self, sink: BinaryIO) -> None:
        self._zip = zipfile.ZipFile(_Stream(sink), "w", zipfile.ZIP_STORED)

    def put(self, name: str, data: bytes) -> None:
        """Add a file."""
        info = zipfile.ZipInfo(name)  # dated 1980, as all that has no date
        info.external_attr = 0o644 << 16
        info.create_system = 3
        self._zip.writestr(info, data)

    def put_group(self, name: str, attributes: Mapping[str, str]) -> None:
        """Add a group's metadata. name: with its slash; empty is the root."""
        self.put(f"{name}zarr.json", _json(_group(attributes)))

    def close(self) -> None:
        """Write the zip's directory. The sink stays open."""
        self._zip.close()


class _Stream:
    """A sink that never seeks, so that a zip does not differ by where it is written to."""

    def __init__(self, sink: BinaryIO) -> None:
        self._sink, self._size = sink, 0

    def write(self, data: Any) -> int:
        self._size += memoryview(data).nbytes
        return self._sink.write(data)

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        """Whoever owns the sink flushes it."""

    def close(self) -> None:
        """And closes it."""


class GrowingArray:
    """An array that is being written: items wait for their chunk, chunks for their shard."""

    def __init__(self, array: ArrayType, sink: ZipWriter) -> None:
        self._array, self._put = array, sink.put
        self._codec = pa.Codec("zstd", compression_level=_LEVEL)
        self._chunk = np.zeros((array.chunk, *array.shape), dtype=array.dtype)
        self._filled = self._shard = 0
        self._chunks: list[bytes] = []
        self.items = 0

    def append(self, values: Array) -> None:
        """Items, [any, *shape]."""
        self.items += len(values)
        while len(values):
            count = min(len(values), len(self._chunk) - self._filled)
            self._chunk[self._filled : self._filled + count] = values[:count]
            values, self._filled = values[count:], self._filled + count
            if self._filled == len(self._chunk):
                self._compress()

    def close(self) -> None:
        """What waits, the last chunk filled up with zeros, and the metadata."""
        if self._filled:
            self._compress()
        if self._chunks:
            self._flush()
        self._put(f"{self._array.name}/zarr.json", _json(self._array.metadata(self.items)))

    def _compress(self) -> None:
        self._chunks.append(self._codec.compress(self._chunk, asbytes=True))
        self._chunk[:] = 0
        self._filled = 0
        if len(self._chunks) == SHARD_CHUNKS:
            self._flush()

    def _flush(self) -> None:
        sizes = np.array([len(chunk) for chunk in self._chunks], dtype=np.int64)
        index = np.full((SHARD_CHUNKS, 2), 2**64 - 1, dtype="<u8")  # 2**64 - 1: there is no such chunk
        index[: len(sizes)] = np.stack([offsets_of(sizes)[:-1], sizes], axis=1)
        data = index.tobytes()
        self._put(self._array.key(self._shard), b"".join(self._chunks) + data + _crc32c(data))
        self._shard, self._chunks = self._shard + 1, []


# Reading


class ZipReader:
    """The files of the zip. None is larger than it is there, and all of them are not larger than the zip."""

    def __init__(self, data: bytes) -> None:
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
        except BROKEN_ZIP as error:
            raise CorruptShard(f"no readable zip: {error}") from error
        infos = self._zip.infolist()
        self._left = {info.filename: info for info in infos}
        expect(len(self._left) == len(infos), "two members have the same name")
        for info in infos:
            plain = info.compress_type == zipfile.ZIP_STORED and info.file_size == info.compress_size
            expect(plain, f"the member {info.filename!r} is not stored as it is")
        expect(sum(info.file_size for info in infos) <= len(data), "its members claim more than is there")

    def take(self, name: str) -> zipfile.ZipInfo:
        """A member that has to be there."""
        expect(name in self._left, f"the member {name} is missing")
        return self._left.pop(name)

    def refuse_others(self) -> None:
        """Raises CorruptShard that names a member which nobody took."""
        for name in self._left:
            raise CorruptShard(f"the member {name!r} does not belong there")

    def read(self, info: zipfile.ZipInfo) -> bytes:
        """A member's bytes, their CRC verified."""
        try:
            return self._zip.read(info)
        except BROKEN_ZIP as error:
            raise CorruptShard(f"the member {info.filename} does not decode: {error}") from error

    def attributes(self, name: str) -> Mapping[str, Any]:
        """Those of a group. name: as in `ZipWriter.put_group`."""
        found = self.json(f"{name}zarr.json", lambda found: _group({}))["attributes"]
        expect(isinstance(found, dict), f"{name}zarr.json has attributes that are no object")
        return found  # type: ignore[no-any-return]

    def json(self, name: str, wanted: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
        """A member that is metadata. wanted: what it has to be, given what it is, but for attributes and for
        what only describes.
        """
        try:
            found = json.loads(self.read(self.take(name)))
        except (ValueError, RecursionError) as error:
            raise CorruptShard(f"{name} is no JSON: {error}") from error
        expect(isinstance(found, dict), f"{name} is no JSON object")
        for key, value in wanted(found).items():
            expect(key in found, f"{name} declares no {key}")
            expect(key == "attributes" or found[key] == value, f"{name} declares another {key} than the spec")
        expect(not found.get("storage_transformers"), f"{name} declares storage transformers")
        return found  # type: ignore[no-any-return]


class StoredArray:
    """An array that is being read, a chunk at a time. items: how many it has."""

    def __init__(self, array: ArrayType, members: ZipReader) -> None:
        """Raises CorruptShard unless metadata and shards are those that a writer makes of some items."""
        self.array, self._members = array, members
        metadata = members.json(f"{array.name}/zarr.json", lambda found: array.metadata(_extent(found)))
        self.items: int = metadata["shape"][0]
        self._codec = pa.Codec("zstd")
        shards = array.shards(self.items)
        # One after the other: a shape of 2**60 items ends at the first shard that is missing.
        self._shards = [members.take(array.key(shard)) for shard in range(shards)]
        self._opened: tuple[int, bytes, npt.NDArray[np.uint64]] | None = None
        self._decoded: tuple[int, Array] | None = None

    def read(self, start: int, stop: int) -> Array:
        """Some items, [stop - start, *shape]."""
        parts = []
        for number in range(start // self.array.chunk, -(-stop // self.array.chunk)):
            first = number * self.array.chunk
            parts.append(self._chunk(number)[max(start - first, 0) : stop - first])
        if not parts:
            return np.zeros((0, *self.array.shape), dtype=self.array.dtype)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _chunk(self, number: int) -> Array:
        if self._decoded is None or self._decoded[0] != number:
            self._decoded = (number, self._decompressed(number))
        return self._decoded[1]

    def _decompressed(self, number: int) -> Array:
        array, (data, index) = self.array, self._shard(number // SHARD_CHUNKS)
        start, length = map(int, index[number % SHARD_CHUNKS])
        where, size = f"chunk {number} of {array.name}", array.chunk * array.item_bytes
        expect(start + length <= len(data), f"{where} is missing or beyond its shard")
        try:
            raw = self._codec.decompress(memoryview(data)[start : start + length], size, asbytes=True)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise CorruptShard(f"{where} does not decode: {error}") from error
        expect(len(raw) == size, f"{where} has not the bytes of its shape")
        return np.frombuffer(raw, dtype=array.dtype).reshape(array.chunk, *array.shape)

    def _shard(self, number: int) -> tuple[bytes, npt.NDArray[np.uint64]]:
        if self._opened is None or self._opened[0] != number:
            data = self._members.read(self._shards[number])
            index = data[-16 * SHARD_CHUNKS - 4 : -4]  # then its CRC; the zip's covers all of it
            expect(len(index) == 16 * SHARD_CHUNKS, f"{self.array.key(number)} has no index")
            self._opened = (number, data, np.frombuffer(index, dtype="<u8").reshape(-1, 2))
        return self._opened[1:]


def _extent(metadata: Mapping[str, Any]) -> int:
    """How many items an array says to have, 0 if it says nothing that could be."""
    shape = metadata.get("shape")
    first = shape[0] if isinstance(shape, list) and shape else None
    return first if type(first) is int and first >= 0 else 0


def expect(holds: bool, otherwise: str) -> None:
    """Raises CorruptShard with that sentence unless it holds."""
    if not holds:
        raise CorruptShard(otherwise)


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def _crc32c(data: bytes) -> bytes:
    """CRC-32C (Castagnoli), little-endian, as Zarr's codec of that name appends it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC32C[(crc ^ byte) & 0xFF]
    return struct.pack("<I", crc ^ 0xFFFFFFFF)


def _crc32c_of_byte(crc: int) -> int:
    for _ in range(8):
        crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc


_CRC32C = [_crc32c_of_byte(byte) for byte in range(256)]
