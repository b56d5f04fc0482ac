"""Another store's rows, found by (key, view), whichever units that store was cut into."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import OrderedDict

import numpy as np
import numpy.typing as npt

from pipeline.targets.rows import Rows
from pipeline.targets.store import Store

SHARDS = 4
"""Shards of a store that are kept in memory for rows that lie in other units."""


class Partner:
    """Another store's rows by (key, view): those of the same unit at once, others by an index of all of them.

    The index takes 16 bytes a row and one reading of the store. It is made when a row is first not in the
    unit of the same id, that is, if the other store was cut otherwise.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._commits = {
            commit.unit: dataclasses.replace(commit, statistics={}, histograms={})
            for commit in store.commits()
            if commit.rows
        }
        self._units = sorted(self._commits)
        self._shards: OrderedDict[str, Rows] = OrderedDict()
        self._index: tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]] | None = None
        self._found: list[tuple[str, int]] = []

    def find(self, unit: str, rows: Rows) -> npt.NDArray[np.int64]:
        """For each row a number for `take`, -1 where there is none; int64 [rows]."""
        names = list(zip(rows.keys, rows.view.tolist(), strict=True))
        here: dict[tuple[str, int], int] = {}
        if unit in self._commits:
            theirs = self._shard(unit)
            here = {name: i for i, name in enumerate(zip(theirs.keys, theirs.view.tolist(), strict=True))}
        self._found = []
        numbers = np.full(len(names), -1, dtype=np.int64)
        for i, name in enumerate(names):
            place = (unit, here[name]) if name in here else self._elsewhere(unit, *name)
            if place is not None:
                numbers[i] = len(self._found)
                self._found.append(place)
        return numbers

    def take(self, numbers: npt.NDArray[np.int64]) -> Rows:
        """The rows that the last `find` numbered so, in the order given."""
        places = [self._found[number] for number in numbers.tolist()]
        parts, order = [], []
        for unit in sorted({unit for unit, _ in places}):
            at = [i for i, place in enumerate(places) if place[0] == unit]
            parts.append(self._shard(unit).take(np.array([places[i][1] for i in at], dtype=np.int64)))
            order += at
        return Rows.concatenate(parts).take(np.argsort(np.array(order), kind="stable"))

    def _elsewhere(self, unit: str, key: str, view: int) -> tuple[str, int] | None:
        if self._index is None:
            self._index = self._indexed()
        hashes, places = self._index
        wanted = _name(key, view)
        at = int(np.searchsorted(hashes, wanted))
        while at < len(hashes) and hashes[at] == wanted:
            there, row = self._units[int(places[at]) >> 32], int(places[at]) & 0xFFFFFFFF
            rows = self._shard(there)
            if rows.keys[row] == key and int(rows.view[row]) == view:
                return there, row
            at += 1
        return None

    def _indexed(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
        hashes, places = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
        for number, unit in enumerate(self._units):
            names = [
                _name(key, view)
                for rows in self._store.read(self._commits[unit])
                for key, view in zip(rows.keys, rows.view.tolist(), strict=True)
            ]
            hashes.append(np.array(names, dtype=np.uint64))
            places.append((number << 32) + np.arange(len(names), dtype=np.int64))
        together = np.concatenate(hashes)
        order = np.argsort(together, kind="stable")
        return together[order], np.concatenate(places)[order]

    def _shard(self, unit: str) -> Rows:
        if unit in self._shards:
            self._shards.move_to_end(unit)
        else:
            self._shards[unit] = Rows.concatenate(list(self._store.read(self._commits[unit])))
            while len(self._shards) > SHARDS:
                self._shards.popitem(last=False)
        return self._shards[unit]


def _name(key: str, view: int) -> int:
    digest = hashlib.blake2b(f"{view} {key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
