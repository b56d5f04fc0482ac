"""NumPy arrays: .npy files and members of .npz archives, a record being one row of the first dimension.

Read in ranges, so that a unit costs its own rows and no more memory. It never unpickles: an array of objects
is refused.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, ClassVar, Literal

import numpy as np
from numpy.lib import format as npy
from pydantic import PositiveInt

from pipeline.corpus.base import NOTHING_PLANNED, Read, Record
from pipeline.corpus.files import FileSource, cut, pack, part_of
from pipeline.targets.errors import ConfigError, CorpusUnreadable
from pipeline.targets.unit import Slice, Unit

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Layout:
    """What a .npy header says. offset: bytes before the first row; shape: of one row."""

    offset: int
    rows: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))


class ArrayFiles(FileSource):
    """Arrays of images or features; a record is {"array": ndarray}, its key `<file>#<row>`."""

    usual: ClassVar[tuple[str, ...]] = ("*.npy", "*.npz")

    decides: ClassVar[frozenset[str]] = FileSource.decides | {"member"}

    kind: Literal["arrays"] = "arrays"
    """NumPy files."""

    member: str | None = None
    """The array to take of an .npz archive that holds several."""

    unit_rows: PositiveInt = 4096
    """Rows that make a unit, at most."""

    def units(self, planned: Mapping[str, str] = NOTHING_PLANNED) -> Iterator[Unit]:
        return pack(self._parts(planned), self.unit_rows)

    def _parts(self, planned: Mapping[str, str]) -> Iterator[tuple[Slice, int, int]]:
        for file in self.new_files(planned):
            with self.peek(file) as opened, self._array(file.url, opened) as array:
                layout = read_layout(file.url, array)
                array.seek(0, io.SEEK_END)
                if array.tell() < layout.offset + layout.rows * layout.row_bytes:
                    raise CorpusUnreadable(
                        f"{file.url} ends before its last row: copy it again, or exclude it"
                    )
            for start, stop in cut(layout.rows, self.unit_rows):
                rows = stop - start
                yield part_of(file, start, stop), rows, rows * layout.row_bytes

    def records(self, unit: Unit) -> Generator[Read, None, None]:
        row = 0
        for part in unit.slices:
            name = self.name(part)
            with self.open(part) as file, self._array(part.url, file) as array:
                layout = read_layout(part.url, array)
                for index, values in rows_between(part.url, array, layout, part.start, part.stop):
                    yield Record(f"{name}#{index}", row, {"array": values})
                    row += 1

    @contextmanager
    def _array(self, url: str, file: BinaryIO) -> Iterator[BinaryIO]:
        if not url.endswith(".npz"):
            yield file
            return
        try:
            with zipfile.ZipFile(file) as archive:
                names = [name.removesuffix(".npy") for name in archive.namelist()]
                member = self.member or (names[0] if len(names) == 1 else None)
                if member not in names:
                    raise ConfigError(
                        f"{url} holds the arrays {names}: name one of them as the source's member"
                    )
                with archive.open(f"{member}.npy") as array:
                    yield array  # type: ignore[misc]
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise CorpusUnreadable(
                f"{url} is a broken archive ({error}): copy it again, or exclude it"
            ) from error


def read_layout(url: str, array: BinaryIO) -> Layout:
    """The header of a .npy file. Raises CorpusUnreadable when it is none, or declares objects."""
    try:
        version = npy.read_magic(array)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"format version {version}")
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(array)
    except (ValueError, EOFError) as error:
        raise CorpusUnreadable(f"{url} is no NumPy array file: {error}") from error
    if dtype.hasobject:
        raise CorpusUnreadable(f"{url} holds Python objects, which are never unpickled: save a numeric array")
    if not shape:
        raise CorpusUnreadable(f"{url} holds a single number: save an array with one row a record")
    if fortran and len(shape) > 1:
        raise CorpusUnreadable(f"{url} is in Fortran order: save numpy.ascontiguousarray of it")
    return Layout(array.tell(), shape[0], tuple(shape[1:]), dtype)


def rows_between(
    url: str, array: BinaryIO, layout: Layout, start: int, stop: int
) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
    """Row numbers and rows, about a MiB at a time. Raises CorpusUnreadable when the file ends early."""
    array.seek(layout.offset + start * layout.row_bytes)
    step = max(1, CHUNK_BYTES // max(1, layout.row_bytes))
    for first in range(start, stop, step):
        count = min(step, stop - first)
        data = array.read(count * layout.row_bytes)
        if len(data) < count * layout.row_bytes:
            raise CorpusUnreadable(f"{url} ends before row {first + count}: copy it again, or exclude it")
        values = np.frombuffer(data, layout.dtype).reshape(count, *layout.shape)
        for i in range(count):
            yield first + i, values[i, ...]  # an array, also where a row is a single number
