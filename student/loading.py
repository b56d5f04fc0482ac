"""From blocks to tables: read, checked, decoded, kept in the cache of this machine.

Knows stores and tables, nothing of orders, batches or tensors. Several threads use it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from pipeline.targets.errors import CorruptShard
from pipeline.targets.id_map import IdMap
from pipeline.targets.shards import Shard
from pipeline.targets.store import Store
from student.cache import Cache
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


class Loader:
    """Loads blocks of a store."""

    def __init__(
        self, store: Store, cache: Cache | None, id_map: IdMap | None, replayer: Replayer | None
    ) -> None:
        self._store, self._cache, self._id_map, self._replayer = store, cache, id_map, replayer
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
        if self._cache is None:
            return self._read(shard)
        name = json.dumps([LAYOUT, self._store.spec.fingerprint, shard.shard_sha256])
        digest = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
        return self._cache.table(digest, self._store.spec, lambda: self._read(shard))

    def _read(self, shard: Shard) -> Table:
        for attempt in range(1, TRIES + 1):
            try:
                return Table.concatenate([lay_out(rows) for rows in self._store.read(shard)])
            except CorruptShard:
                if attempt == TRIES:
                    raise
        raise AssertionError("unreachable")
