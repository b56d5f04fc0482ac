"""The manifest: commit records folded into one Parquet file, so that a million shards open in seconds.

It knows the file's columns and how to find a unit in it. Manifests are numbered and never change; the
highest number counts. A unit in the manifest wins over any commit record of its name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Iterable, Iterator, Mapping
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.targets.commit import Commit
from pipeline.targets.errors import SpecMismatch, StorageError
from pipeline.targets.parquet_file import parquet_file
from pipeline.targets.storage import Storage

_TYPES = {
    "str": pa.string(),
    "str | None": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "Mapping[str, float]": pa.map_(pa.string(), pa.float64()),
    "Mapping[str, list[int]]": pa.map_(pa.string(), pa.list_(pa.int64())),
}
SCHEMA = pa.schema(
    [
        pa.field(field.name, _TYPES[str(field.type)], nullable=str(field.type) == "str | None")
        for field in dataclasses.fields(Commit)
    ]
)
_EARLIER = pa.schema([field for field in SCHEMA if field.name != "filtered"])
"""The columns of manifests that were made before there were filters."""
_GROUP_ROWS = 2**16
_PYTHON_ROWS = 2**12
"""Commit records that are Python objects at once."""
PLAIN = [name for name in SCHEMA.names if name not in ("statistics", "histograms")]
"""Columns of one value a unit."""
NOTHING: Mapping[str, Any] = {}
"""The statistics of a record that is read without them: one object for all."""

Ids = npt.NDArray[np.bytes_]
"""Ids of units, S32 [len]."""


def manifest_name(number: int) -> str:
    """Manifests count from 1."""
    return f"manifest/{number:08d}.parquet"


class Manifest:
    """One manifest. units: the ids in it, sorted, S32 [len]: 32 bytes a unit, not a Python object each."""

    def __init__(self, storage: Storage, number: int, fingerprint: str) -> None:
        """number: 0 for the empty one that every store begins with.

        Raises FileNotFoundError, StorageError when the file does not decode, SpecMismatch when it is of
        another store.
        """
        self.number = number
        self._storage, self._fingerprint = storage, fingerprint
        parts = [ids_of(batch.column(0)) for batch in self._batches(["unit"])]
        self.units = np.sort(np.concatenate([np.zeros(0, dtype="S32"), *parts]))

    def __len__(self) -> int:
        return len(self.units)

    def __contains__(self, unit: str) -> bool:
        wanted = np.bytes_(unit)
        at = int(np.searchsorted(self.units, wanted))
        return at < len(self.units) and bool(self.units[at] == wanted)

    def ids(self) -> Iterator[str]:
        """The ids of its units, sorted."""
        for start in range(0, len(self.units), _GROUP_ROWS):
            yield from self.units[start : start + _GROUP_ROWS].astype("U32").tolist()

    def attempts(self) -> Iterator[str]:
        """ "<unit>-<attempt>" of its units: the stem of the names of what they refer to."""
        for batch in self._batches(["unit", "attempt"]):
            yield from pc.binary_join_element_wise(batch.column(0), batch.column(1), "-").to_pylist()

    def plain(self) -> Iterator[pa.RecordBatch]:
        """All its commit records as batches of the columns `PLAIN`: what can be added up without objects."""
        yield from self._batches(PLAIN)

    def commits(self, statistics: bool = True) -> Iterator[Commit]:
        """All its commit records, in the order of compaction; with `statistics` False, faster and without."""
        for batch in self._batches(None if statistics else PLAIN):
            for start in range(0, len(batch), _PYTHON_ROWS):
                yield from self._commits(batch.slice(start, _PYTHON_ROWS))

    def find(self, unit: str) -> Commit | None:
        """The unit's commit record."""
        if unit not in self:
            return None
        with self._opened() as file:
            for group in range(file.num_row_groups):
                at = pc.index(self._read(file, group, ["unit"]).column(0), unit).as_py()
                if at >= 0:
                    return next(self._commits(self._read(file, group, None).slice(at, 1)))
        return None

    def encode(self, new: Iterable[Commit], without: frozenset[str]) -> bytes:
        """The file of the next manifest: this one's units but those of `without`, then the new ones."""
        sink = io.BytesIO()
        schema = SCHEMA.with_metadata({"decant.spec_fingerprint": self._fingerprint})
        with pq.ParquetWriter(
            sink,
            schema,
            compression="zstd",
            use_dictionary=["device", "spec_fingerprint"],
            write_page_checksum=True,
        ) as writer:
            for batch in self._batches(None):
                if without:
                    dropped = pc.is_in(batch.column(0), pa.array(sorted(without), pa.string()))
                    batch = batch.filter(pc.invert(dropped))
                writer.write_batch(batch.replace_schema_metadata(schema.metadata))
            waiting: list[pa.RecordBatch] = []
            for group in _groups(new):
                waiting.append(_batch(group, schema))
                if len(waiting) * _PYTHON_ROWS == _GROUP_ROWS:
                    writer.write_table(pa.Table.from_batches(waiting), _GROUP_ROWS)
                    waiting.clear()
            if waiting:
                writer.write_table(pa.Table.from_batches(waiting), _GROUP_ROWS)
        return sink.getvalue()

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        with self._storage.open(manifest_name(self.number)) as source:
            try:
                file = parquet_file(source)
                schema = file.schema_arrow
            except (pa.ArrowException, OSError, ValueError) as error:
                raise self._broken(error) from error
            if not schema.equals(SCHEMA) and not schema.equals(_EARLIER):
                raise self._broken("its columns are not a manifest's")
            if (schema.metadata or {}).get(b"decant.spec_fingerprint") != self._fingerprint.encode():
                raise SpecMismatch(
                    f"{manifest_name(self.number)} of {self._storage.url} is of another store: remove it"
                )
            yield file

    def _batches(self, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
        if self.number:
            with self._opened() as file:
                for group in range(file.num_row_groups):
                    yield self._read(file, group, columns)

    def _read(self, file: Any, group: int, columns: list[str] | None) -> pa.RecordBatch:
        try:
            table = file.read_row_group(group, columns, use_threads=False)
            if columns is None and "filtered" not in table.column_names:
                table = table.append_column(SCHEMA.field("filtered"), pa.array([0] * len(table), pa.int64()))
            return pa.RecordBatch.from_struct_array(table.to_struct_array().combine_chunks())
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._broken(error) from error

    def _commits(self, batch: pa.RecordBatch) -> Iterator[Commit]:
        columns = [batch.column(name).to_pylist() for name in PLAIN]
        statistics, histograms = (
            batch.column(name).to_pylist(maps_as_pydicts="strict")
            if name in batch.schema.names
            else repeat(NOTHING, len(batch))
            for name in ("statistics", "histograms")
        )
        for *plain, means, bins in zip(*columns, statistics, histograms, strict=True):
            try:
                yield Commit(**dict(zip(PLAIN, plain, strict=True)), statistics=means, histograms=bins)
            except ValueError as error:
                raise self._broken(error) from error

    def _broken(self, error: object) -> StorageError:
        return StorageError(
            f"{manifest_name(self.number)} of {self._storage.url} is broken ({error}): "
            "restore it from a copy; the shards are untouched"
        )


def ids_of(column: pa.Array) -> Ids:
    """A column of units' ids as S32 [len]."""
    fixed = column.cast(pa.binary()).cast(pa.binary(32))
    return np.frombuffer(fixed.buffers()[1], dtype="S32")[fixed.offset : fixed.offset + len(fixed)]


def among(ids: Ids, known: Ids) -> npt.NDArray[np.bool_]:
    """Which of the ids are in `known`, which is sorted."""
    if not len(known):
        return np.zeros(len(ids), dtype=bool)
    at = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    found: npt.NDArray[np.bool_] = known[at] == ids
    return found


def _groups(commits: Iterable[Commit]) -> Iterator[list[Commit]]:
    group: list[Commit] = []
    for commit in commits:
        group.append(commit)
        if len(group) == _PYTHON_ROWS:
            yield group
            group = []
    if group:
        yield group


def _batch(commits: list[Commit], schema: pa.Schema) -> pa.RecordBatch:
    columns = []
    for field in schema:
        values = [getattr(commit, field.name) for commit in commits]
        if pa.types.is_map(field.type):
            values = [sorted(value.items()) for value in values]
        columns.append(pa.array(values, field.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)
