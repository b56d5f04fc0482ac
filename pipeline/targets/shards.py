"""The shards of a store as columns: what reading them takes, of a million without an object each.

It knows commit records' plain columns and nothing of rows, orders or readers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.targets.commit import shard_name
from pipeline.targets.containers import CONTAINERS
from pipeline.targets.errors import CorruptShard
from pipeline.targets.follow import Follower
from pipeline.targets.manifest import Ids, ids_of

if TYPE_CHECKING:
    from pipeline.targets.store import Store

_HEX = re.compile("[0-9a-f]+")


@dataclass(frozen=True)
class Shard:
    """What reading a shard takes of its commit record. Names and counts are as in `Commit`."""

    unit: str
    shard: str
    shard_bytes: int
    shard_sha256: str
    rows: int


@dataclass(frozen=True)
class Shards(Sequence[Shard]):
    """Some shards of a store, sorted by unit id; those without rows are no shards.

    units: S32 [n]. attempts: S16 [n]. sha256: S64 [n]. sizes: bytes, int64 [n]. rows: int64 [n].
    extension: of their names.
    """

    units: Ids
    attempts: npt.NDArray[np.bytes_]
    sha256: npt.NDArray[np.bytes_]
    sizes: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    extension: str

    def __len__(self) -> int:
        return len(self.units)

    @overload
    def __getitem__(self, at: int) -> Shard: ...
    @overload
    def __getitem__(self, at: slice) -> Shards: ...
    def __getitem__(self, at: int | slice) -> Shard | Shards:
        """Raises CorruptShard for names that are none: a manifest comes from outside."""
        if isinstance(at, slice):
            return self.take(np.arange(len(self))[at])
        unit, attempt, sha256 = (
            str(column[at], "ascii", "replace") for column in (self.units, self.attempts, self.sha256)
        )
        if not all(map(_HEX.fullmatch, (unit, attempt, sha256))):
            raise CorruptShard(f"the manifest names a shard {unit!r} that cannot be: compact the store again")
        name = shard_name(unit, attempt, self.extension)
        return Shard(unit, name, int(self.sizes[at]), sha256, int(self.rows[at]))

    def take(self, chosen: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> Shards:
        """The shards at these places."""
        return Shards(
            self.units[chosen],
            self.attempts[chosen],
            self.sha256[chosen],
            self.sizes[chosen],
            self.rows[chosen],
            self.extension,
        )


def shards_of(store: Store) -> Shards:
    """Every shard of the store that has rows, each exactly once. Raises as `Store.commits`.

    Time and memory are those of the manifest's columns; only records that no manifest has are objects.
    """
    # Room for all beforehand: what comes in pieces and is put together is in memory twice.
    columns = [np.zeros(len(store.manifest()), dtype) for dtype in ("S32", "S16", "S64", "i8", "i8")]
    filled = 0
    for batch in Follower(store).refresh():
        pieces, stop = _columns(batch), 0
        for at, piece in enumerate(pieces):
            stop = filled + len(piece)
            if stop > len(columns[at]):
                columns[at] = np.resize(columns[at], 2 * stop)
            columns[at][filled:stop] = piece
        filled = stop
    order = np.argsort(columns[0][:filled], kind="stable")
    units, attempts, sha256, sizes, rows = (columns.pop(0)[:filled][order] for _ in range(5))
    return Shards(units, attempts, sha256, sizes, rows, CONTAINERS[store.spec.container].extension)


def _columns(batch: pa.RecordBatch) -> list[npt.NDArray[Any]]:
    full = batch.select(["unit", "attempt", "shard_sha256", "shard_bytes", "rows"])
    full = full.filter(pc.greater(full.column("rows"), 0))
    return [
        ids_of(full.column("unit")),
        _digits(full.column("attempt"), 16),
        _digits(full.column("shard_sha256"), 64),
        full.column("shard_bytes").to_numpy(),
        full.column("rows").to_numpy(),
    ]


def _digits(column: pa.Array, count: int) -> npt.NDArray[np.bytes_]:
    fixed = column.cast(pa.binary()).cast(pa.binary(count))
    digits = np.frombuffer(fixed.buffers()[1] or b"", dtype=f"S{count}")
    return digits[fixed.offset : fixed.offset + len(fixed)]
