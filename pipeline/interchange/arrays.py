"""Whole logits in arrays, one row of the first dimension a record: what .npy and .npz files hold.

It knows NumPy's files, and how logits in an array become any codec's targets; Zarr is in `zarr_arrays`. It
never unpickles: arrays of objects are refused.

An array is [N, V], a target a record; or [N, T, V] with the records' tokens [N, L] beside it, L being T or
T + 1, where the logits at place t tell token t + 1.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, ClassVar

import numpy as np
import numpy.typing as npt

from pipeline.corpus.arrays import read_layout, rows_between
from pipeline.corpus.files import cut
from pipeline.interchange.base import HEAD, UNIT_BYTES, Importer, described, vocabulary
from pipeline.interchange.source import Source
from pipeline.job import AnyCodec
from pipeline.targets import Ragged
from pipeline.targets.codecs import Codec, Dense
from pipeline.targets.codecs.base import (
    Array,
    Encoded,
    NonFiniteLogits,
    concatenate,
    id_dtype,
    offsets_of,
    uniforms,
)
from pipeline.targets.errors import ConfigError, CorpusUnreadable
from pipeline.targets.rows import Rows
from pipeline.targets.spec import TOKENS, Head, Input, Spec
from pipeline.targets.unit import Quarantined, Slice, Unit

BLOCK_BYTES = 8 << 20
"""Logits encoded at once, about: no less than one record's."""

BESIDE = ("tokens", "input_ids")
"""Names that the array of tokens may have, in the archive or group of the logits."""


@dataclass(frozen=True)
class Table:
    """An array of logits. classes: V; places: T, None for one target a row; dtype: as it is stored."""

    rows: int
    places: int | None
    classes: int
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        return (self.places or 1) * self.classes * self.dtype.itemsize


class LogitArrays(Importer):
    """Arrays of logits, any number of them, of one V."""

    member: str | None = None
    """The array to take of an .npz archive, or of Zarr groups, that hold several."""

    codec: AnyCodec | None = None
    """How the store keeps the logits; by default `dense`, in float16 where they are float16."""

    seed: int = 0
    """Of the draws that a sampling codec makes."""

    tokenizer: str | None = None
    """Of sequences: the directory with the teacher's tokenizer.json."""

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
        """Row numbers, and rows [n, V] or [n, T, V], about BLOCK_BYTES at a time."""

    @abstractmethod
    def tokens(self, source: Source, name: str) -> Array | None:
        """The tokens beside an array, [N, L]; None if there are none."""

    def specified(self, kind: str, source: Source) -> Spec:
        """The spec of a store of such arrays. Raises ConfigError when they do not go together."""
        tables = {name: self.table(source, name) for name in self.names(source)}
        if not tables:
            raise ConfigError(f"{source.url} has no array {self.member or ''}: check the path and the member")
        first_name, first = next(iter(tables.items()))
        for name, table in tables.items():
            if table.classes != first.classes or (table.places is None) != (first.places is None):
                raise ConfigError(
                    f"{name} of {source.url} has {table.classes} classes and {first_name} {first.classes}, "
                    "or only one is of sequences: import them into stores of their own"
                )
            if table.places is not None:
                self._check_tokens(source, name, table)
        half = all(table.dtype == np.float16 for table in tables.values())
        codec: Codec = self.codec or Dense("float16" if half else "float32")
        description = described(kind, source)
        sequences = first.places is not None
        return Spec(
            inputs=(Input(TOKENS, id_dtype(first.classes), (None,)),) if sequences else (),
            heads=(Head(HEAD, first.classes, "next_token" if sequences else "single", codec),),
            teacher=description,
            views={"kind": "imported", "fingerprint": description["fingerprint"]},
            seed=self.seed,
            vocabulary=vocabulary(self.tokenizer, first.classes) if sequences else None,
        )

    def _check_tokens(self, source: Source, name: str, table: Table) -> None:
        found = self.tokens(source, name)
        wanted = f"[{table.rows}, {table.places}]"
        if found is None:
            raise ConfigError(
                f"{name} of {source.url} has logits of sequences and no {' or '.join(BESIDE)} beside it in "
                f"its .npz archive or Zarr group: put whole numbers {wanted} there"
            )
        lengths = (table.places, (table.places or 0) + 1)
        if (
            found.dtype.kind not in "iu"
            or found.ndim != 2
            or len(found) != table.rows
            or (found.shape[1] not in lengths)
        ):
            raise ConfigError(
                f"the tokens of {name} of {source.url} are {found.dtype} {list(found.shape)}, "
                f"not whole numbers {wanted}"
            )

    def units(self, source: Source) -> Iterator[Unit]:
        for name in self.names(source):
            table = self.table(source, name)
            for start, stop in cut(table.rows, max(1, UNIT_BYTES // table.row_bytes)):
                yield Unit((self.part(source, name, start, stop),), (stop - start) * table.row_bytes)

    def read(self, source: Source, unit: Unit, spec: Spec) -> Iterator[Rows | Quarantined]:
        row = 0
        for part in unit.slices:
            tokens = self.tokens(source, part.url) if spec.inputs else None
            for first, block in self.blocks(source, part):
                keys = [f"{part.url}#{first + i}" for i in range(len(block))]
                beside = None if tokens is None else tokens[first : first + len(block)]
                yield from _encoded(spec, keys, row, block, beside)
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

    def tokens(self, source: Source, name: str) -> Array | None:
        if name.endswith(".npy"):
            return None
        for member in BESIDE:
            with self._archive(source, name) as archive:
                if f"{member}.npy" in archive.namelist():
                    with archive.open(f"{member}.npy") as array:
                        layout = read_layout(source.where(name), array)  # type: ignore[arg-type]
                        rows = rows_between(source.where(name), array, layout, 0, layout.rows)  # type: ignore[arg-type]
                        return np.array([values for _, values in rows])
        return None

    @contextmanager
    def _opened(self, source: Source, name: str) -> Iterator[BinaryIO]:
        if name.endswith(".npy"):
            with source.open(name) as file:
                yield file
            return
        with self._archive(source, name) as archive:
            names = [item.removesuffix(".npy") for item in archive.namelist()]
            member = self.member or (names[0] if len(names) == 1 else HEAD)
            if member not in names:
                raise ConfigError(f"{source.where(name)} holds the arrays {names}: name one as the member")
            with archive.open(f"{member}.npy") as array:
                yield array  # type: ignore[misc]

    @contextmanager
    def _archive(self, source: Source, name: str) -> Iterator[zipfile.ZipFile]:
        try:
            with source.open(name) as file, zipfile.ZipFile(file) as archive:
                yield archive
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise CorpusUnreadable(
                f"{source.where(name)} is a broken archive ({error}): copy it again"
            ) from error


def table_of(where: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Table:
    """Raises ConfigError unless it is an array of floating-point numbers [N, V] or [N, T, V]."""
    if dtype.kind != "f" or len(shape) not in (2, 3) or not all(shape[1:]):
        raise ConfigError(
            f"{where} is an array of {dtype} of shape {list(shape)}: import floating-point logits [N, V], "
            "or [N, T, V] with their tokens"
        )
    return Table(shape[0], shape[1] if len(shape) == 3 else None, shape[-1], dtype)


def _encoded(
    spec: Spec, keys: list[str], row: int, logits: Array, tokens: Array | None
) -> Iterator[Rows | Quarantined]:
    """Some records; a broken one comes as Quarantined. row: ordinal of the first."""
    head = spec.heads[0]
    targets = 1 if tokens is None else tokens.shape[1] - 1
    logits = logits.reshape(len(keys), -1, head.size)[:, :targets]
    draws = np.stack([uniforms(spec.seed, head.name, key, 0, targets, head.codec.draws) for key in keys])
    bad: dict[int, tuple[str, str]] = {}
    if tokens is not None:
        outside = (tokens < 0) | (tokens >= head.size)
        for at in np.flatnonzero(outside.any(axis=1)).tolist():
            bad[at] = ("undecodable", f"token {tokens[at][outside[at]][0]} is not one of {head.size}")
    while len(bad) < len(keys):
        kept = np.array([at for at in range(len(keys)) if at not in bad], dtype=np.int64)
        try:
            encoded = _flat(head.codec, logits[kept], draws[kept])
        except NonFiniteLogits as error:
            for at in kept[error.rows.reshape(len(kept), targets).any(axis=1)].tolist():
                bad[at] = ("non_finite", "the logits are not finite")
        except ValueError as error:
            raise ConfigError(f"{keys[0]} and following: {error}") from error
        else:
            yield _rows(spec, [keys[at] for at in kept], row + kept, encoded, tokens, kept)
            break
    for at, (code, reason) in sorted(bad.items()):
        yield Quarantined(keys[at], row + at, None, code, f"{keys[at]}: {reason}")


def _flat(codec: Codec, logits: Array, draws: Array) -> Encoded:
    """The targets of records [n, T, V], one after the other; draws: [n, T, draws]."""
    if not logits.shape[1]:
        return concatenate([], codec.layout(logits.shape[2]))
    total = logits.shape[0] * logits.shape[1]
    return codec.encode(logits.reshape(total, -1), draws.reshape(total, draws.shape[2]))


def _rows(
    spec: Spec,
    keys: list[str],
    row: npt.NDArray[np.int64],
    encoded: Encoded,
    tokens: Array | None,
    kept: npt.NDArray[np.int64],
) -> Rows:
    inputs: dict[str, Array | Ragged] = {}
    targets = 0
    if tokens is not None:
        length, targets = tokens.shape[1], tokens.shape[1] - 1
        values = tokens[kept].reshape(-1).astype(spec.inputs[0].dtype)
        inputs[TOKENS] = Ragged(values, offsets_of(np.full(len(keys), length)))
    return Rows(
        spec=spec,
        keys=keys,
        row=row,
        view=np.zeros(len(keys), dtype=np.int32),
        views=np.ones(len(keys), dtype=np.int32),
        targets=np.full(len(keys), targets, dtype=np.int32),
        inputs=inputs,
        heads={HEAD: encoded},
    )
