"""From blocks to tables: read, checked, decoded, kept in the cache of this machine.

Knows stores and tables, nothing of orders, batches or tensors. Several threads use it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.targets.errors import CorruptShard, UserError
from pipeline.targets.id_map import IdMap
from pipeline.targets.manifest import Ids, among
from pipeline.targets.shards import Shard, shards_of
from pipeline.targets.spec import Spec
from pipeline.targets.store import Store
from student.cache import Cache
from student.ensemble import averaged
from student.order import Block
from student.replay import Origin, Replayer
from student.table import LAYOUT, Table, lay_out

TRIES = 2
"""Times that a shard is read before it counts as corrupt: what was cut off on its way is whole the next
time."""


@dataclass(frozen=True)
class Loaded:
    """Some rows, and what they are rendered from, if they are."""

    table: Table
    origins: list[Origin]


class Teacher:
    """A store whose targets are averaged with another's, of the same units."""

    def __init__(self, store: Store, units: Ids) -> None:
        """units: those that it has to have. Raises UserError where it has not."""
        self.store, self.shards = store, shards_of(store)
        missing = int((~among(units, self.shards.units)).sum())
        if missing:
            raise UserError(
                f"{store.url} lacks {missing} of the {len(units)} units to average: label the same corpus, "
                "cut alike, with both teachers"
            )

    def shard(self, unit: str) -> Shard:
        """The unit's."""
        return self.shards[int(np.searchsorted(self.shards.units, np.bytes_(unit)))]


class Loader:
    """Loads blocks of a store."""

    def __init__(
        self,
        store: Store,
        cache: Cache | None,
        id_map: IdMap | None,
        replayer: Replayer | None,
        others: Sequence[Teacher] = (),
        averaged: Spec | None = None,
    ) -> None:
        """others: stores whose targets are averaged with the store's; averaged: what their mean is."""
        self._store, self._cache, self._id_map, self._replayer = store, cache, id_map, replayer
        self._others, self._averaged = others, averaged
        self._compared: set[str] = set()

    def load(self, block: Block) -> Loaded:
        """The rows of a block. Raises CorruptShard with the shard's name, SpecMismatch with the key of a
        record that the id map's tokenizers cut differently, and as `Replayer.origins`.
        """
        shard = block.shard
        table = self._table(shard)
        if self._id_map is not None and shard.unit not in self._compared:
            self._id_map.check(table.rows(), shard.shard)
            self._compared.add(shard.unit)
        origins = self._replayer.origins(table.rows(), shard) if self._replayer else []
        if len(block) == shard.rows:
            return Loaded(table, origins)
        return Loaded(table.slice(block.start, block.stop), origins[block.start : block.stop])

    def _table(self, shard: Shard) -> Table:
        spec = self._averaged or self._store.spec
        sources = [(self._store, shard), *((other.store, other.shard(shard.unit)) for other in self._others)]

        def make() -> Table:
            tables = [_read(store, each) for store, each in sources]
            return averaged(self._averaged, tables, shard.shard) if self._averaged else tables[0]

        if self._cache is None:
            return make()
        heads = [head.name for head in spec.heads]
        content = [[store.spec.fingerprint, each.shard_sha256] for store, each in sources]
        name = json.dumps([LAYOUT, heads, content]).encode()
        return self._cache.table(hashlib.blake2b(name, digest_size=16).hexdigest(), spec, make)


def _read(store: Store, shard: Shard) -> Table:
    for attempt in range(1, TRIES + 1):
        try:
            return Table.concatenate([lay_out(rows) for rows in store.read(shard)])
        except CorruptShard:
            if attempt == TRIES:
                raise
    raise AssertionError("unreachable")
