"""The plan of a store: its generations, each a file that never changes and is added whole.

It knows their names and order, and how one unit of a million is found without holding them. What a file looks
like, `plan` knows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.targets import plan
from pipeline.targets.errors import PlannedMeanwhile, SpecMismatch
from pipeline.targets.storage import Storage
from pipeline.targets.unit import Unit

HELD = 8
"""Row groups of a plan that `Lookup` holds."""


class Generations:
    """What is planned into a store. Several threads and processes may use it, and plan."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._counts: dict[str, int] = {}

    def latest(self) -> int:
        """The number of the newest, 0 when nothing is planned."""
        return max(map(plan.generation_of, self.names()), default=0)

    def add(self, units: Iterable[Unit], corpus: Mapping[str, Any], after: int) -> int:
        """As `Store.write_plan`."""
        known: set[str] = set()
        for name in self.names():
            with self._storage.open(name) as file:
                known.update(plan.PlanFile(file, name).ids())
        data, count = plan.encode(_new(((unit.id, unit) for unit in units), known), corpus)
        if count and not self._storage.put_if_absent(plan.plan_name(after + 1), data):
            raise PlannedMeanwhile(f"another process has just planned into {self._storage.url}: plan again")
        return count

    def copy(self, source: Generations) -> None:
        """As `Store.copy_plan`."""
        for name in source.names():
            data = source._storage.read(name)
            if not self._storage.put_if_absent(name, data) and self._storage.read(name) != data:
                theirs = source._storage.url
                raise SpecMismatch(
                    f"{self._storage.url} has another {name} than {theirs}: give another store url"
                )

    def units(self) -> Iterator[tuple[str, Unit]]:
        """All units with their ids, in the order of planning, streamed."""
        for name in self.names():
            with self._storage.open(name) as file:
                yield from plan.PlanFile(file, name).units()

    def count(self) -> int:
        """How many units there are. A generation's file is opened once."""
        names = self.names()
        for name in names:
            if name not in self._counts:
                with self._storage.open(name) as file:
                    self._counts[name] = len(plan.PlanFile(file, name))
        return sum(self._counts[name] for name in names)

    def names(self) -> list[str]:
        """Of the generations' files, in order."""
        listed = self._storage.list("plan/")
        return sorted(entry.name for entry in listed if plan.generation_of(entry.name))


class Lookup:
    """Units by their ids, as planned when this was made. Several threads may use it.

    It holds 12 bytes a unit, and a few row groups of the plan as Arrow has them.
    """

    def __init__(self, storage: Storage, generations: Generations) -> None:
        """Reads the ids of all units, once."""
        self._storage = storage
        self._groups: list[tuple[str, int]] = []  # a generation's file, and the row group in it
        starts, count = [0], 0
        shorts: list[npt.NDArray[np.uint64]] = []
        for name in generations.names():
            with storage.open(name) as file:
                for number, ids in enumerate(plan.PlanFile(file, name).ids_by_group()):
                    shorts.append(np.array([_short(id_) for id_ in ids], dtype=np.uint64))
                    self._groups.append((name, number))
                    count += len(ids)
                    starts.append(count)
        found = np.concatenate(shorts) if shorts else np.zeros(0, dtype=np.uint64)
        self._places = np.argsort(found, kind="stable").astype(np.uint32)
        self._shorts = found[self._places]
        self._starts = np.array(starts)
        self._group = lru_cache(maxsize=HELD)(self._read)

    def find(self, unit_id: str) -> Unit | None:
        """The unit of that id; None if none is planned. Reads a row group of the plan, or has it."""
        short = np.uint64(_short(unit_id))
        first, last = (int(np.searchsorted(self._shorts, short, side)) for side in ("left", "right"))
        for place in self._places[first:last].tolist():
            group = int(np.searchsorted(self._starts, place, "right")) - 1
            batch = self._group(*self._groups[group])
            for id_, unit in plan.units_of(batch.slice(place - int(self._starts[group]), 1)):
                if id_ == unit_id:
                    return unit
        return None

    def _read(self, name: str, group: int) -> pa.RecordBatch:
        with self._storage.open(name) as file:
            return plan.PlanFile(file, name).group(group)


def _short(unit_id: str) -> int:
    """An id in 64 bits, which another may have too."""
    return int.from_bytes(hashlib.blake2b(unit_id.encode(), digest_size=8).digest(), "little")


def _new(units: Iterable[tuple[str, Unit]], known: set[str]) -> Iterator[tuple[str, Unit]]:
    """Those not known yet, which are known from then on."""
    for name, unit in units:
        if name not in known:
            known.add(name)
            yield name, unit
