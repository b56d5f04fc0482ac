"""Whole logits in arrays, one row of the first dimension a record: what .npy and .npz files hold.

It knows NumPy's files, and how logits in an array become any codec's targets; Zarr is in `zarr_arrays`. It
never unpickles: arrays of objects are refused.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, ClassVar

import numpy as np

from pipeline.corpus.arrays import read_layout, rows_between
from pipeline.corpus.files import cut
from pipeline.interchange.base import HEAD, UNIT_BYTES, Importer, described
from pipeline.interchange.source import Source
from pipeline.job import AnyCodec
from pipeline.targets.codecs import Codec, Dense
from pipeline.targets.codecs.base import Array, Encoded, NonFiniteLogits, uniforms
from pipeline.targets.errors import ConfigError, CorpusUnreadable
from pipeline.targets.rows import Rows
from pipeline.targets.spec import Head, Spec
from pipeline.targets.unit import Quarantined, Slice, Unit

BLOCK_BYTES = 8 << 20
"""Logits encoded at once."""


@dataclass(frozen=True)
class Table:
    """An array of logits. classes: V; dtype: as it is stored."""

    rows: int
    classes: int
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        return self.classes * self.dtype.itemsize


class LogitArrays(Importer):
    """Arrays of logits [N, V], any number of them, of one V."""

    member: str | None = None
    """The array to take of an .npz archive, or of Zarr groups, that hold several."""

    codec: AnyCodec | None = None
    """How the store keeps the logits; by default `dense`, in float16 where they are float16."""

    seed: int = 0
    """Of the draws that a sampling codec makes."""

    @abstractmethod
    def names(self, source: Source) -> list[str]:
        """The arrays of the source, sorted."""

    @abstractmethod
    def table(self, source: Source, name: str) -> Table:
        """What an array is. Raises ConfigError or CorpusUnreadable, also when it is not all there."""

    @abstractmethod
    def part(self, source: Source, name: str, start: int, stop: int) -> Slice:
        """Some rows of an array, for a unit."""

    @abstractmethod
    def blocks(self, source: Source, part: Slice) -> Iterator[tuple[int, Array]]:
        """Row numbers, and rows [n, V], about BLOCK_BYTES at a time."""

    def specified(self, kind: str, source: Source) -> Spec:
        """The spec of a store of such arrays. Raises ConfigError when they do not go together."""
        tables = {name: self.table(source, name) for name in self.names(source)}
        if not tables:
            raise ConfigError(f"{source.url} has no array {self.member or ''}: check the path and the member")
        first_name, first = next(iter(tables.items()))
        for name, table in tables.items():
            if table.classes != first.classes:
                raise ConfigError(
                    f"{name} of {source.url} has {table.classes} classes and {first_name} {first.classes}: "
                    "import them into stores of their own"
                )
        half = all(table.dtype == np.float16 for table in tables.values())
        codec: Codec = self.codec or Dense("float16" if half else "float32")
        description = described(kind, source)
        return Spec(
            inputs=(),
            heads=(Head(HEAD, first.classes, "single", codec),),
            teacher=description,
            views={"kind": "imported", "fingerprint": description["fingerprint"]},
            seed=self.seed,
        )

    def units(self, source: Source) -> Iterator[Unit]:
        for name in self.names(source):
            table = self.table(source, name)
            for start, stop in cut(table.rows, max(1, UNIT_BYTES // table.row_bytes)):
                yield Unit((self.part(source, name, start, stop),), (stop - start) * table.row_bytes)

    def read(self, source: Source, unit: Unit, spec: Spec) -> Iterator[Rows | Quarantined]:
        row = 0
        for part in unit.slices:
            for first, block in self.blocks(source, part):
                keys = [f"{part.url}#{first + i}" for i in range(len(block))]
                yield from _encoded(spec, keys, row, block)
                row += len(block)


class NumpyArrays(LogitArrays):
    """Logits in .npy and .npz files."""

    patterns: ClassVar[tuple[str, ...]] = ("*.npy", "*.npz")

    def spec(self, source: Source) -> Spec:
        return self.specified("arrays", source)

    def names(self, source: Source) -> list[str]:
        return list(source.files)

    def table(self, source: Source, name: str) -> Table:
        where = source.where(name)
        with self._opened(source, name) as array:
            layout = read_layout(where, array)
            array.seek(0, io.SEEK_END)
            if array.tell() < layout.offset + layout.rows * layout.row_bytes:
                raise CorpusUnreadable(f"{where} ends before its last row: copy it again")
        return table_of(where, (layout.rows, *layout.shape), layout.dtype)

    def part(self, source: Source, name: str, start: int, stop: int) -> Slice:
        return source.slice(name, start, stop)

    def blocks(self, source: Source, part: Slice) -> Iterator[tuple[int, Array]]:
        with self._opened(source, part.url) as array:
            where = source.where(part.url)
            layout = read_layout(where, array)
            step = max(1, BLOCK_BYTES // layout.row_bytes)
            for first in range(part.start, part.stop, step):
                stop = min(first + step, part.stop)
                yield (
                    first,
                    np.stack([values for _, values in rows_between(where, array, layout, first, stop)]),
                )

    @contextmanager
    def _opened(self, source: Source, name: str) -> Iterator[BinaryIO]:
        with source.open(name) as file:
            if name.endswith(".npy"):
                yield file
                return
            try:
                with zipfile.ZipFile(file) as archive, ExitStack() as stack:
                    names = [item.removesuffix(".npy") for item in archive.namelist()]
                    member = self.member or (names[0] if len(names) == 1 else HEAD)
                    if member not in names:
                        raise ConfigError(
                            f"{source.where(name)} holds the arrays {names}: name one as the member"
                        )
                    yield stack.enter_context(archive.open(f"{member}.npy"))  # type: ignore[misc]
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise CorpusUnreadable(
                    f"{source.where(name)} is a broken archive ({error}): copy it again"
                ) from error


def table_of(where: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Table:
    """Raises ConfigError unless it is an array of floating-point numbers [N, V]."""
    if dtype.kind != "f" or len(shape) != 2 or not shape[1]:
        raise ConfigError(
            f"{where} is an array of {dtype} of shape {list(shape)}: import floating-point logits [N, V]"
        )
    return Table(shape[0], shape[1], dtype)


def _encoded(spec: Spec, keys: list[str], row: int, logits: Array) -> Iterator[Rows | Quarantined]:
    """Some records; one whose logits are not finite comes as Quarantined. row: ordinal of the first."""
    head = spec.heads[0]
    kept = np.arange(len(logits))
    draws = np.concatenate([uniforms(spec.seed, head.name, key, 0, 1, head.codec.draws) for key in keys])
    encoded: Encoded | None = None
    while encoded is None and len(kept):
        try:
            encoded = head.codec.encode(logits[kept], draws[kept])
        except NonFiniteLogits as error:
            for at in kept[error.rows].tolist():
                reason = f"{keys[at]}: the logits are not finite"
                yield Quarantined(keys[at], row + at, None, "non_finite", reason)
            kept = kept[~error.rows]
        except ValueError as error:
            raise ConfigError(f"{keys[0]} and following: {error}") from error
    if encoded is not None:
        yield Rows(
            spec=spec,
            keys=[keys[at] for at in kept],
            row=row + kept,
            view=np.zeros(len(kept), dtype=np.int32),
            views=np.ones(len(kept), dtype=np.int32),
            targets=np.zeros(len(kept), dtype=np.int32),
            inputs={},
            heads={head.name: encoded},
        )
