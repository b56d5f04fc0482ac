"""Shards of a store that keeps no inputs, zipped with the corpus: inputs rendered by the ledger.

It knows rows and the ledger. Where the records of a unit come from, whoever opens the corpus knows.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.targets.errors import CorruptShard, SpecMismatch
from pipeline.targets.ragged import Array, Ragged
from pipeline.targets.replay import Unrenderable, ledger, replay_of, replayed
from pipeline.targets.rows import Rows
from pipeline.targets.shards import Shard
from pipeline.targets.store import Store

Data = Mapping[str, Any]

Records = Callable[[str], Iterator[tuple[int, str, Data]]]
"""The records of a unit, by its id: ordinal in the unit, key and data of each that can be read, in order."""

THREADS = 4
"""That render a batch side by side: decoders and filters hold no lock of the interpreter's."""


@dataclass(frozen=True)
class Origin:
    """What a row is rendered from. shard: where the row lies; record: as the corpus has it; partner: its key
    and data, if there is one.
    """

    shard: str
    record: Data
    partner: tuple[str, Data] | None


class Replayer:
    """Gives the rows of a store the inputs that it does not keep. Several threads may use it.

    spec: the store's, with those inputs. Raises SpecMismatch where the store's views have no ledger.
    """

    def __init__(self, store: Store, records: Records) -> None:
        self._url, self._records = store.url, records
        self._replay = replay_of(store.spec)
        self.spec = replayed(store.spec)

    def origins(self, rows: Rows, shard: Shard) -> list[Origin]:
        """Of all rows of a shard, in order; the unit's records are read once, in order, and not decoded.

        Raises SpecMismatch naming store, shard and key when the corpus has another record in a row's or its
        partner's place, or none; CorruptShard for a broken ledger; and what reading the corpus raises.
        """
        found: list[Origin] = []
        name = shard.shard
        held: OrderedDict[int, tuple[str, Data]] = OrderedDict()
        with closing(self._records(shard.unit)) as records:  # type: ignore[type-var]
            for row, key, data in records:
                while len(found) < len(rows) and rows.row[len(found)] == row:
                    at = len(found)
                    if rows.keys[at] != key:
                        raise self._refusal(rows, at, name, f"the corpus has {key!r} in its place")
                    found.append(Origin(name, data, self._partner(rows, at, name, held)))
                if len(found) == len(rows):
                    return found
                held[row] = key, data
                while len(held) > self._replay.reach:
                    held.popitem(last=False)
        raise self._refusal(rows, len(found), name, "the corpus has no such record in its place")

    def _partner(
        self, rows: Rows, at: int, shard: str, held: Mapping[int, tuple[str, Data]]
    ) -> tuple[str, Data] | None:
        try:
            partner = self._replay.partner(self._entry(rows, at, shard))
        except Unrenderable as error:
            raise self._refusal(rows, at, shard, f"the corpus' record {error.reason}") from error
        if partner is None:
            return None
        key, data = held.get(partner.row, ("", {}))
        if key != partner.key:
            where = f"among the {self._replay.reach} records before it"
            raise self._refusal(rows, at, shard, f"the corpus has no {partner.key!r} {where}")
        return key, data

    def render(self, rows: Rows, origins: Sequence[Origin]) -> Rows:
        """Rows with their inputs, each of which is held against the stored digest.

        A record that several of the rows are of is decoded once. Raises SpecMismatch naming store, shard and
        key when the corpus renders to something else than the teacher saw.
        """
        inputs = {
            item.name: np.empty((len(rows), *item.item_shape), dtype=item.dtype)
            for item in self._replay.inputs
        }
        records: dict[int, list[int]] = {}
        for i, origin in enumerate(origins):
            records.setdefault(id(origin.record), []).append(i)

        def fill(same: Sequence[int]) -> None:
            for i, rendered in self._views(rows, origins, same):
                for name, array in rendered.items():
                    inputs[name][i] = array

        with ThreadPoolExecutor(THREADS, thread_name_prefix="decant-replay") as pool:
            for _ in pool.map(fill, records.values()):
                pass
        both: Mapping[str, Array | Ragged] = {**inputs, **rows.inputs}
        return dataclasses.replace(
            rows, spec=self.spec, inputs={item.name: both[item.name] for item in self.spec.inputs}
        )

    def _views(
        self, rows: Rows, origins: Sequence[Origin], same: Sequence[int]
    ) -> Iterator[tuple[int, dict[str, Array]]]:
        """The inputs of the rows of one record."""
        at = same[0]
        try:
            record = self._replay.decode(origins[at].record)
            for at in same:
                shard, partner = origins[at].shard, origins[at].partner
                other = None if partner is None else self._partner_of(partner)
                rendered = self._replay.render(self._entry(rows, at, shard), record, other)
                if not np.array_equal(self._replay.digest(rendered), rows.inputs[ledger.DIGEST.name][at]):
                    files = "its file" if partner is None else f"its file or that of {partner[0]}"
                    reason = (
                        "the corpus renders to something else than the teacher saw (the digests differ): "
                        f"{files} has changed, or libraries are not {self._replay.decoder}"
                    )
                    raise self._refusal(rows, at, shard, reason)
                yield at, rendered
        except Unrenderable as error:
            reason = f"the corpus' record {error.reason}"
            raise self._refusal(rows, at, origins[at].shard, reason) from error

    def _partner_of(self, partner: tuple[str, Data]) -> Any:
        """Decoded. Raises Unrenderable, which names it."""
        key, data = partner
        try:
            return self._replay.decode(data)
        except Unrenderable as error:
            raise Unrenderable(error.code, f"is mixed with {key}, which {error.reason}") from error

    @staticmethod
    def _entry(rows: Rows, at: int, shard: str) -> dict[str, Any]:
        try:
            return ledger.read(rows.inputs[ledger.LEDGER.name][at])
        except CorruptShard as error:
            raise CorruptShard(f"{rows.keys[at]} in {shard}: {error}") from error

    def _refusal(self, rows: Rows, at: int, shard: str, reason: str) -> SpecMismatch:
        return SpecMismatch(
            f"{self._url}: view {int(rows.view[at])} of {rows.keys[at]} in {shard} cannot be replayed: "
            f"{reason}; restore the corpus, or label with store.inputs: embed"
        )
