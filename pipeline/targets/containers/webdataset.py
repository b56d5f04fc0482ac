"""The WebDataset container: a tar with two members a row, that plain `webdataset` reads as it is.

It knows tar, zip and npy; what the columns mean and where the file lies it does not know. Row 12 is the
sample 000000012: its `.json` says which row it is, its `.npz` holds the arrays, each of the column's own type
and never a pickle. What is said of the whole shard stands in a global PAX header, which tar readers pass
over: a sample of its own would turn up among the rows in everybody's pipeline. Tar has no checksum over its
members' contents, so each `.json` carries one over its sample.

A reader takes exactly the members that it expects, in their order, each of a size that the file really has.
So nothing can leave a root, be a link, be there twice, or unfold into more than it is.
"""

from __future__ import annotations

import io
import json
import math
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from pipeline.targets.containers.base import BATCH_BYTES, BROKEN_ZIP, Typed, check, content, typed_columns
from pipeline.targets.errors import CorruptShard
from pipeline.targets.spec import Spec

_IDENTITY = ("key", "row", "view", "views", "targets")
_END = bytes(2 * tarfile.BLOCKSIZE)


class Writer:
    """Streams record batches into a tar, a row at a time."""

    def __init__(self, sink: BinaryIO, spec: Spec) -> None:
        self._sink, self._columns, self._row = sink, typed_columns(spec), 0
        metadata = spec.schema().metadata.items()
        sink.write(tarfile.TarInfo.create_pax_global_header({k.decode(): v.decode() for k, v in metadata}))

    def write(self, batch: pa.RecordBatch) -> None:
        """Append rows."""
        identities = batch.select(_IDENTITY).to_pylist()
        cells = []
        for column in self._columns:
            data, bounds = content(batch.column(column.name))
            cells.append((data.data, bounds.tolist()))
        for i, identity in enumerate(identities):
            npz = _npz(self._columns, [data[bounds[i] : bounds[i + 1]] for data, bounds in cells])
            name = _sample(self._row)
            self._sink.write(_member(f"{name}.json", _json(identity, npz)) + _member(f"{name}.npz", npz))
            self._row += 1

    def close(self) -> None:
        """Write the two blocks of zeros that end a tar. The sink stays open."""
        self._sink.write(_END)


def read(data: bytes, spec: Spec) -> Iterator[pa.RecordBatch]:
    """The record batches of a file, each of about two MiB.

    Raises CorruptShard for what is no such file, naming the member, and SpecMismatch when it was written for
    another spec.
    """
    schema, columns = spec.schema(), typed_columns(spec)
    members = _members(data)
    check(_global_header(next(members, None)), spec)
    identities: list[dict[str, Any]] = []
    cells: list[list[memoryview]] = [[] for _ in columns]
    waiting = row = 0
    for name, kind, described in members:
        sample = _sample(row)
        _expect(name, kind, f"{sample}.json")
        name, kind, npz = next(members, ("", "the end of the file", memoryview(b"")))
        _expect(name, kind, f"{sample}.npz")
        identities.append(_identity(f"{sample}.json", described, npz))
        for cell, array in zip(cells, _arrays(f"{sample}.npz", npz, columns), strict=True):
            cell.append(array)
        waiting, row = waiting + len(npz), row + 1
        if waiting >= BATCH_BYTES:
            yield _batch(schema, identities, cells)
            identities, cells, waiting = [], [[] for _ in columns], 0
    if identities:
        yield _batch(schema, identities, cells)


# Tar


def _sample(row: int) -> str:
    """The key of a row's sample in its shard."""
    return f"{row:09d}"


def _member(name: str, data: bytes) -> bytes:
    """A file in a tar: no time, no owner, mode 0644."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % tarfile.BLOCKSIZE)


def _members(data: bytes) -> Iterator[tuple[str, str, memoryview]]:
    """Name, kind and content of each member, up to two blocks of zeros that must end the file."""
    view, at = memoryview(data), 0
    while len(data) - at != len(_END) or any(view[at:]):
        try:
            info = tarfile.TarInfo.frombuf(data[at : at + tarfile.BLOCKSIZE], "utf-8", "strict")
        except (tarfile.TarError, ValueError) as error:
            raise CorruptShard(f"no tar header at byte {at}: {error}") from error
        start = at + tarfile.BLOCKSIZE
        if not 0 <= info.size <= len(data) - start:
            raise CorruptShard(f"the member {info.name!r} claims {info.size} bytes, more than are there")
        end = start + info.size
        at = end + -info.size % tarfile.BLOCKSIZE
        if any(view[end:at]) or at > len(data):
            raise CorruptShard(f"the member {info.name!r} is not padded with zeros")
        yield info.name, _KINDS.get(info.type, f"of type {info.type!r}"), view[start:end]


_KINDS = {
    tarfile.REGTYPE: "a file",
    tarfile.XGLTYPE: "a global header",
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.DIRTYPE: "a folder",
}


def _expect(name: str, kind: str, wanted: str) -> None:
    if name != wanted or kind != "a file":
        raise CorruptShard(f"where the file {wanted} belongs stands {name!r}, {kind}")


def _global_header(member: tuple[str, str, memoryview] | None) -> Mapping[str, str]:
    """The records of a global PAX header, each `length key=value\\n`."""
    if member is None or member[1] != "a global header":
        raise CorruptShard("it does not begin with a global PAX header")
    data, at, records = bytes(member[2]), 0, {}
    while at < len(data):
        length, _, _ = data[at : at + 20].partition(b" ")
        record = data[at : at + int(length)] if length.isdigit() else b""
        key, equals, value = record[len(length) + 1 : -1].partition(b"=")
        if not equals or not record.endswith(b"\n") or len(record) != int(length):
            raise CorruptShard("its global PAX header is broken")
        records[key.decode(errors="replace")] = value.decode(errors="replace")
        at += len(record)
    return records


# The identity of a row


def _json(identity: Mapping[str, Any], npz: bytes | memoryview) -> bytes:
    """With `crc32`: of the npz and then of this JSON without it."""

    def text(fields: Mapping[str, Any]) -> bytes:
        return json.dumps(fields, sort_keys=True, ensure_ascii=False).encode()

    return text({**identity, "crc32": zlib.crc32(text(identity), zlib.crc32(npz))})


def _identity(name: str, data: memoryview, npz: memoryview) -> dict[str, Any]:
    try:
        fields = json.loads(bytes(data))
        if not isinstance(fields, dict) or sorted(fields) != sorted((*_IDENTITY, "crc32")):
            raise ValueError("it is no object of the keys crc32, key, row, targets, view and views")
        del fields["crc32"]
        if not isinstance(fields["key"], str) or any(type(fields[n]) is not int for n in _IDENTITY[1:]):
            raise ValueError("a value is of another type")
        if _json(fields, npz) != data:
            raise ValueError("its crc32 is not that of the sample")
    except (ValueError, RecursionError) as error:
        raise CorruptShard(f"{name} does not decode: {error}") from error
    return fields


# Arrays


def _npz(columns: Sequence[Typed], cells: Sequence[memoryview]) -> bytes:
    """An uncompressed npz of the columns' arrays: of the item's shape where a row has one, else of
    [items, *shape].
    """
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for column, cell in zip(columns, cells, strict=True):
            items, rest = divmod(len(cell), column.item_bytes)
            if rest or (column.items == "row" and items != 1):
                raise ValueError(f"a row of {column.name} has {len(cell)} bytes, not one item or whole ones")
            shape = column.shape if column.items == "row" else (items, *column.shape)
            info = zipfile.ZipInfo(f"{column.name}.npy")  # dated 1980, as all that has no date
            info.external_attr = 0o644 << 16
            info.create_system = 3
            archive.writestr(info, _npy_header(column.dtype, shape) + bytes(cell))
    return sink.getvalue()


@lru_cache(2**12)
def _npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    sink = io.BytesIO()
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(sink, header)
    return sink.getvalue()


def _arrays(name: str, npz: memoryview, columns: Sequence[Typed]) -> list[memoryview]:
    """The raw bytes of each column's array. Raises CorruptShard that names the member."""
    try:
        with zipfile.ZipFile(io.BytesIO(npz)) as archive:
            infos = archive.infolist()
            if [info.filename for info in infos] != [f"{column.name}.npy" for column in columns]:
                raise ValueError(f"it holds {[info.filename for info in infos]}")
            return [_array(archive, info, c, len(npz)) for info, c in zip(infos, columns, strict=True)]
    except BROKEN_ZIP as error:
        raise CorruptShard(f"{name} does not decode: {error}") from error


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, column: Typed, most: int) -> memoryview:
    if info.compress_type != zipfile.ZIP_STORED or info.file_size > most:
        raise ValueError(f"{info.filename} is not stored as it is")
    data = archive.read(info)
    length = 10 + int.from_bytes(data[8:10], "little")
    dtype, fortran, shape = _parsed_header(data[:length])
    items = 1 if column.items == "row" else shape[0] if shape else -1
    wanted = column.shape if column.items == "row" else (items, *column.shape)
    if dtype != column.dtype or fortran or shape != wanted:
        raise ValueError(f"{info.filename} is of {dtype} {shape}, not of {column.dtype} {wanted}")
    if len(data) - length != math.prod(shape) * np.dtype(dtype).itemsize:
        raise ValueError(f"{info.filename} has not the bytes of its shape")
    return memoryview(data)[length:]


@lru_cache(2**12)
def _parsed_header(header: bytes) -> tuple[str, bool, tuple[int, ...]]:
    """dtype, order and shape that an npy header of version 1 says. An object's dtype is no column's."""
    source = io.BytesIO(header)
    if np.lib.format.read_magic(source) != (1, 0):
        raise ValueError("an npy member is not of version 1.0")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(source)
    return dtype.str, fortran, shape


def _batch(
    schema: pa.Schema, identities: list[dict[str, Any]], cells: list[list[memoryview]]
) -> pa.RecordBatch:
    try:
        columns = [
            pa.array([identity[name] for identity in identities], schema.field(name).type)
            for name in _IDENTITY
        ]
        columns += [pa.array(cell, pa.binary()) for cell in cells]
        return pa.RecordBatch.from_arrays(columns, schema=schema)
    except (pa.ArrowException, OverflowError, ValueError, TypeError) as error:
        raise CorruptShard(f"its rows do not decode: {error}") from error
