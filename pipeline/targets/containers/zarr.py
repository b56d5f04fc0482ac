"""The Zarr container: a Zarr v3 group in an uncompressed zip, which `zarr.open_group` opens as it is.

It knows zip, JSON and Zarr's sharding codec; what the columns mean and where the file lies it does not know.
Every column is an array of its own type, in zstd chunks gathered into Zarr's shards. Where a row may have any
number of items, `offsets/<column>` says where those of each row begin.

The layout is written and read here, with pyarrow's zstd, because the library would not do for either. To
write, it wants the number of rows before the first; to read, it unfolds whatever the metadata claims, fills
in what is missing, and loads codecs by name. Here memory holds one chunk an array and what is compressed of
its current shard; a reader takes exactly the metadata and the chunks that it expects, and a chunk never
unfolds beyond its declared size. Besides, equal rows give equal bytes whatever release of the library is
installed, and no event loop runs in a process that may fork. The tests read all of it with the library, and
here what the library wrote.
"""

from __future__ import annotations

import io
import json
import math
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.targets.containers.base import BATCH_BYTES, Blocks, check, content, typed_columns
from pipeline.targets.errors import CorruptShard
from pipeline.targets.ragged import Array, offsets_of
from pipeline.targets.spec import Spec

CHUNK_BYTES = 2**18
"""Of a chunk as it is in memory, but at least one item."""

SHARD_CHUNKS = 32
"""Chunks that one of Zarr's shards gathers, at most: 8 MiB in memory."""

BLOCK_ROWS = 2**12
"""Rows whose numbers and offsets a reader holds at once."""

_LEVEL = 3
_NUMBERS = {"row": "<i8", "view": "<i4", "views": "<i4", "targets": "<i4"}
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
class _Array:
    """One array of the group: any number of items of `shape`, of a type that Zarr's core has."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, name: str, dtype: str, shape: tuple[int, ...]) -> _Array:
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


class _Layout:
    """Which arrays the rows of a spec are."""

    def __init__(self, spec: Spec) -> None:
        self.columns = typed_columns(spec)
        self.numbers = [_Array(name, dtype, ()) for name, dtype in _NUMBERS.items()]
        self.values = [_Array("key", "|u1", ())]
        self.values += [_Array.of(c.name, c.dtype, c.shape) for c in self.columns]
        self.offsets = [
            _Array(f"offsets/{name}", "<i8", ())
            for name in ("key", *(column.name for column in self.columns if column.items == "any"))
        ]
        self.attributes = {k.decode(): v.decode() for k, v in spec.schema().metadata.items()}

    @property
    def arrays(self) -> list[_Array]:
        """All of them."""
        return [*self.numbers, *self.values, *self.offsets]


# Writing


class Writer:
    """Streams record batches into a zip: full chunks are compressed, full shards leave memory."""

    def __init__(self, sink: BinaryIO, spec: Spec, batch_bytes: int = BATCH_BYTES) -> None:
        self._layout = _Layout(spec)
        self._blocks = Blocks(spec.schema(), batch_bytes)
        self._zip = zipfile.ZipFile(_Stream(sink), "w", zipfile.ZIP_STORED)
        self._growing = {array.name: _Growing(array, self._put) for array in self._layout.arrays}
        for array in self._layout.offsets:
            self._growing[array.name].append(np.zeros(1, dtype=np.int64))

    def write(self, batch: pa.RecordBatch) -> None:
        """Append rows."""
        for block in self._blocks.add(batch):
            self._append(block)

    def close(self) -> None:
        """Write what waits, the metadata, and the zip's directory. The sink stays open."""
        for block in self._blocks.rest():
            self._append(block)
        for growing in self._growing.values():
            growing.close()
        self._put("offsets/zarr.json", _json(_group({})))
        self._put("zarr.json", _json(_group(self._layout.attributes)))
        self._zip.close()

    def _append(self, block: pa.RecordBatch) -> None:
        for array in self._layout.numbers:
            self._growing[array.name].append(block.column(array.name).to_numpy())
        for array in self._layout.values:
            data, bounds = content(block.column(array.name))
            growing = self._growing[array.name]
            before = growing.items
            growing.append(data.view(array.dtype).reshape(-1, *array.shape))
            if offsets := self._growing.get(f"offsets/{array.name}"):
                offsets.append(before + bounds[1:] // array.item_bytes)

    def _put(self, name: str, data: bytes) -> None:
        info = zipfile.ZipInfo(name)  # dated 1980, as all that has no date
        info.external_attr = 0o644 << 16
        info.create_system = 3
        self._zip.writestr(info, data)


class _Growing:
    """An array that is being written: items wait for their chunk, chunks for their shard."""

    def __init__(self, array: _Array, put: Any) -> None:
        self._array, self._put = array, put
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


# Reading


def read(data: bytes, spec: Spec) -> Iterator[pa.RecordBatch]:
    """The record batches of a file, each of about two MiB.

    Raises CorruptShard for what is no such file, naming the array, and SpecMismatch when it was written for
    another spec.
    """
    layout, members = _Layout(spec), _Members(data)
    group = members.json("zarr.json", _group({}))
    attributes = group.get("attributes")
    check(attributes if isinstance(attributes, dict) else {}, spec)
    members.json("offsets/zarr.json", _group({}))
    stored = {array.name: _Stored(array, members) for array in layout.arrays}
    members.refuse_others()
    rows = stored["row"].items
    for array in (*layout.numbers, *layout.offsets):
        _expect(
            stored[array.name].items == rows + (array in layout.offsets), f"{array.name} has not {rows} rows"
        )
    schema, per_target = spec.schema(), {c.name: c.items == "target" for c in layout.columns}
    kinds = [schema.field(array.name).type for array in layout.values]
    at = dict.fromkeys((array.name for array in layout.values), 0)
    for start in range(0, rows, BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, rows)
        numbers = {array.name: stored[array.name].read(start, stop) for array in layout.numbers}
        _expect(bool((numbers["targets"] >= 0).all()), "a row has a negative number of targets")
        bounds = {}
        for array in layout.values:
            if (offsets := stored.get(f"offsets/{array.name}")) is not None:
                found = offsets.read(start, stop + 1)
            elif per_target[array.name]:
                found = at[array.name] + offsets_of(numbers["targets"])
            else:
                found = np.arange(start, stop + 1)
            rising = found[0] == at[array.name] and bool((found[1:] >= found[:-1]).all())
            _expect(rising, f"the offsets of {array.name} do not rise from 0")
            _expect(int(found[-1]) <= stored[array.name].items, f"{array.name} is shorter than its rows say")
            bounds[array.name], at[array.name] = found, int(found[-1])
        sizes = sum(np.diff(bounds[a.name]) * a.item_bytes for a in layout.values)
        for first, last in _cuts(np.asarray(sizes)):
            key, *columns = (
                _binary(stored[array.name], bounds[array.name][first : last + 1], kind)
                for array, kind in zip(layout.values, kinds, strict=True)
            )
            plain = [pa.array(numbers[array.name][first:last]) for array in layout.numbers]
            yield pa.RecordBatch.from_arrays([key, *plain, *columns], schema=schema)
    for name, end in at.items():
        _expect(end == stored[name].items, f"{name} is longer than its rows say")


class _Members:
    """The files of the zip. None is larger than it is there, and all of them are not larger than the zip."""

    def __init__(self, data: bytes) -> None:
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
        except _BROKEN_ZIP as error:
            raise CorruptShard(f"no readable zip: {error}") from error
        infos = self._zip.infolist()
        self._left = {info.filename: info for info in infos}
        _expect(len(self._left) == len(infos), "two members have the same name")
        for info in infos:
            plain = info.compress_type == zipfile.ZIP_STORED and info.file_size == info.compress_size
            _expect(plain, f"the member {info.filename!r} is not stored as it is")
        _expect(sum(info.file_size for info in infos) <= len(data), "its members claim more than is there")

    def take(self, name: str) -> zipfile.ZipInfo:
        """A member that has to be there."""
        _expect(name in self._left, f"the member {name} is missing")
        return self._left.pop(name)

    def refuse_others(self) -> None:
        """Raises CorruptShard that names a member which nobody took."""
        for name in self._left:
            raise CorruptShard(f"the member {name!r} does not belong there")

    def read(self, info: zipfile.ZipInfo) -> bytes:
        """A member's bytes, their CRC verified."""
        try:
            return self._zip.read(info)
        except _BROKEN_ZIP as error:
            raise CorruptShard(f"the member {info.filename} does not decode: {error}") from error

    def json(self, name: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """A member that is metadata, as `wanted` but for its attributes and for what only describes.

        The first extent of a shape may be any count.
        """
        try:
            found = json.loads(self.read(self.take(name)))
        except (ValueError, RecursionError) as error:
            raise CorruptShard(f"{name} is no JSON: {error}") from error
        _expect(isinstance(found, dict), f"{name} is no JSON object")
        for key, value in wanted.items():
            other = found.get(key)
            if (
                key == "shape"
                and isinstance(other, list)
                and other
                and type(other[0]) is int
                and other[0] >= 0
            ):
                value = [other[0], *value[1:]]
            _expect(key == "attributes" or other == value, f"{name} declares another {key} than the spec")
        _expect(not found.get("storage_transformers"), f"{name} declares storage transformers")
        return found  # type: ignore[no-any-return]


class _Stored:
    """An array that is being read, a chunk at a time. items: how many it has."""

    def __init__(self, array: _Array, members: _Members) -> None:
        """Raises CorruptShard unless metadata and shards are those that a writer makes of some items."""
        self.array, self._members = array, members
        self.items: int = members.json(f"{array.name}/zarr.json", array.metadata(0))["shape"][0]
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
        _expect(start + length <= len(data), f"{where} is missing or beyond its shard")
        try:
            raw = self._codec.decompress(memoryview(data)[start : start + length], size, asbytes=True)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise CorruptShard(f"{where} does not decode: {error}") from error
        _expect(len(raw) == size, f"{where} has not the bytes of its shape")
        return np.frombuffer(raw, dtype=array.dtype).reshape(array.chunk, *array.shape)

    def _shard(self, number: int) -> tuple[bytes, npt.NDArray[np.uint64]]:
        if self._opened is None or self._opened[0] != number:
            data = self._members.read(self._shards[number])
            index = data[-16 * SHARD_CHUNKS - 4 : -4]
            whole = len(index) == 16 * SHARD_CHUNKS and _crc32c(index) == data[-4:]
            _expect(whole, f"the index of {self.array.key(number)} is broken")
            self._opened = (number, data, np.frombuffer(index, dtype="<u8").reshape(-1, 2))
        return self._opened[1:]


_BROKEN_ZIP = (
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
    ValueError,
    KeyError,
    EOFError,
    OSError,
    struct.error,
)
"""What zipfile raises of bytes that are none."""


def _binary(stored: _Stored, bounds: npt.NDArray[np.int64], kind: pa.DataType) -> pa.Array:
    """A binary or string column of the rows whose items begin there."""
    ends = (bounds - bounds[0]) * stored.array.item_bytes
    _expect(int(ends[-1]) < 2**31, f"a row of {stored.array.name} has more than 2 GiB")
    data = np.ascontiguousarray(stored.read(int(bounds[0]), int(bounds[-1])))
    buffers = [None, pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(data)]
    return pa.Array.from_buffers(kind, len(ends) - 1, buffers)


def _cuts(sizes: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Ranges of rows, each of at least one row and, where that is possible, of at most BATCH_BYTES."""
    ends, start = np.cumsum(sizes), 0
    while start < len(ends):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + BATCH_BYTES, side="right")))
        yield start, stop
        start = stop


def _expect(holds: bool, otherwise: str) -> None:
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
