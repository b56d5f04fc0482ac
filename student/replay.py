"""Shards of a store that keeps no inputs, zipped with the corpus: inputs rendered by the ledger.

It knows rows and the ledger. Where the records of a unit come from, whoever opens the corpus knows.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from typing import Any

import numpy as np

from pipeline.targets.commit import Commit
from pipeline.targets.errors import CorruptShard, SpecMismatch
from pipeline.targets.ragged import Array, Ragged
from pipeline.targets.replay import Unrenderable, ledger, replay_of, replayed
from pipeline.targets.rows import Rows
from pipeline.targets.store import Store

Records = Callable[[str], Iterator[tuple[int, str, Mapping[str, Any]]]]
"""The records of a unit, by its id: ordinal in the unit, key and data of each that can be read, in order."""


class Replayer:
    """Gives the rows of a store the inputs that it does not keep. Several threads may use it.

    spec: the store's, with those inputs. Raises SpecMismatch where the store's views have no ledger.
    """

    def __init__(self, store: Store, records: Records) -> None:
        self._store, self._records = store, records
        self._replay = replay_of(store.spec)
        self.spec = replayed(store.spec)

    def __call__(self, rows: Rows, commit: Commit) -> Rows:
        """All rows of a shard, in order, with their inputs; the unit's records are read once, in order.

        Every row's digest is held against the stored one. Holds as many records as a partner may be away.
        Raises SpecMismatch naming store, shard and key when the corpus has another record in a row's place or
        none, or when it renders to something else than the teacher saw; and what reading the corpus raises.
        """
        inputs = {
            item.name: np.empty((len(rows), *item.item_shape), dtype=item.dtype)
            for item in self._replay.inputs
        }
        at = 0
        held: OrderedDict[int, tuple[str, Mapping[str, Any]]] = OrderedDict()
        with closing(self._records(commit.unit)) as records:  # type: ignore[type-var]
            for row, key, data in records:
                if at == len(rows):
                    break
                if rows.row[at] == row:
                    if rows.keys[at] != key:
                        raise self._refusal(commit, rows, at, f"the corpus has {key!r} in its place")
                    for rendered in self._record(rows, commit, at, data, held):
                        for name, array in rendered.items():
                            inputs[name][at] = array
                        at += 1
                held[row] = key, data
                while len(held) > self._replay.reach:
                    held.popitem(last=False)
        if at < len(rows):
            raise self._refusal(commit, rows, at, "the corpus has no such record in its place")
        both: Mapping[str, Array | Ragged] = {**inputs, **rows.inputs}
        return dataclasses.replace(
            rows, spec=self.spec, inputs={item.name: both[item.name] for item in self.spec.inputs}
        )

    def _record(
        self,
        rows: Rows,
        commit: Commit,
        first: int,
        data: Mapping[str, Any],
        held: Mapping[int, tuple[str, Mapping[str, Any]]],
    ) -> Iterator[dict[str, Array]]:
        """The inputs of all views of one record, whose first row that is."""
        entries, digests = rows.inputs[ledger.LEDGER.name], rows.inputs[ledger.DIGEST.name]
        i = first
        try:
            record = self._replay.decode(data)
            while i < len(rows) and rows.row[i] == rows.row[first] and rows.keys[i] == rows.keys[first]:
                entry, other = ledger.read(entries[i]), None
                if (partner := self._replay.partner(entry)) is not None:
                    key, found = held.get(partner.row, ("", {}))
                    if key != partner.key:
                        where = f"among the {self._replay.reach} records before it"
                        raise self._refusal(commit, rows, i, f"the corpus has no {partner.key!r} {where}")
                    other = self._replay.decode(found)
                inputs = self._replay.render(entry, record, other)
                if not np.array_equal(self._replay.digest(inputs), digests[i]):
                    raise self._refusal(
                        commit,
                        rows,
                        i,
                        "the corpus renders to something else than the teacher saw (the digests differ): the "
                        f"file has changed, or libraries are not {self._replay.decoder}",
                    )
                yield inputs
                i += 1
        except CorruptShard as error:
            raise CorruptShard(f"{commit.shard}, row {i}: {error}") from error
        except Unrenderable as error:
            raise self._refusal(commit, rows, i, f"the corpus' record {error.reason}") from error

    def _refusal(self, commit: Commit, rows: Rows, i: int, reason: str) -> SpecMismatch:
        return SpecMismatch(
            f"{self._store.url}: view {int(rows.view[i])} of {rows.keys[i]} in {commit.shard} cannot be "
            f"replayed: {reason}; restore the corpus, or label with store.inputs: embed"
        )
