"""Verification: read everything that is committed, and list what is wrong with it.

A unit is sound when its files are those that were committed and decode, when its counts are true, and when
every view of each of its records is there exactly once, as a row or in quarantine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.targets.errors import CorruptShard, SpecMismatch

if TYPE_CHECKING:
    from pipeline.targets.commit import Commit
    from pipeline.targets.store import Store


@dataclass(frozen=True)
class Problem:
    """Something wrong with a committed unit. shard: None if the unit has none; reason: a sentence."""

    unit: str
    shard: str | None
    reason: str


@dataclass(frozen=True)
class Verification:
    """What was verified. missing_units: planned and not committed, which by itself is no problem."""

    problems: tuple[Problem, ...]
    units: int
    shards: int
    records: int
    rows: int
    targets: int
    quarantined: int
    missing_units: int


def verify(store: Store, progress: Callable[[Commit], None] | None = None) -> Verification:
    """Read the whole store. progress: called after each unit. Raises StorageError if it cannot be read."""
    found: list[Problem] = []
    units = shards = records = rows = targets = quarantined = 0
    for commit in store.commits():
        units += 1
        shards += commit.shard is not None
        records += commit.records
        rows += commit.rows
        targets += commit.targets
        quarantined += commit.quarantined
        found += problems(store, commit)
        if progress is not None:
            progress(commit)
    missing = sum(1 for _ in store.pending())
    return Verification(tuple(found), units, shards, records, rows, targets, quarantined, missing)


def problems(store: Store, commit: Commit) -> list[Problem]:
    """Read one unit and list what is wrong with it. Raises StorageError if it cannot be read."""
    return [Problem(commit.unit, commit.shard, reason) for reason in _wrong(store, commit)]


def _wrong(store: Store, commit: Commit) -> Iterator[str]:
    """The reasons for which a unit is not sound."""
    try:
        yield from _Records(store, commit).wrong()
    except (CorruptShard, SpecMismatch) as error:
        yield str(error)


class _Records:
    """What a unit holds of each record: by ordinal, its key, its number of views, and the views seen."""

    def __init__(self, store: Store, commit: Commit) -> None:
        self._commit = commit
        self._keys: dict[int, str] = {}
        self._views: dict[int, int] = {}
        self._seen: dict[int, list[int]] = {}
        self._whole: list[int] = []
        self._conflicts: list[str] = []
        self._targets = self._quarantined = self._failures = 0
        for rows in store.read(commit):
            per_row = any(head.positions == "next_token" for head in store.spec.heads)
            self._targets += int(rows.targets.sum()) if per_row else len(rows)
            for head in store.spec.heads:
                try:
                    rows.decode(head.name)
                except (ValueError, IndexError) as error:
                    raise CorruptShard(
                        f"shard {commit.shard} of {store.url}: head {head.name} does not decode: {error}"
                    ) from error
            columns = (rows.row.tolist(), rows.keys, rows.view.tolist(), rows.views.tolist())
            for row, key, view, views in zip(*columns, strict=True):
                self._note(row, key)
                self._seen.setdefault(row, []).append(view)
                if self._views.setdefault(row, views) != views:
                    self._conflicts.append(f"record {key!r} has two different numbers of views")
        for item in store.quarantined(commit):
            self._quarantined += 1
            self._failures += item.code != "empty"
            self._note(item.row, item.key)
            if item.view is None:
                self._whole.append(item.row)
            else:
                self._seen.setdefault(item.row, []).append(item.view)

    def _note(self, row: int, key: str) -> None:
        if self._keys.setdefault(row, key) != key:
            self._conflicts.append(f"row {row} is of two records, {self._keys[row]!r} and {key!r}")

    def wrong(self) -> Iterator[str]:
        commit = self._commit
        yield from self._conflicts
        for what, found, committed in (
            ("records", len(self._keys), commit.records),
            ("targets", self._targets, commit.targets),
            ("quarantined", self._quarantined, commit.quarantined),
            ("failures", self._failures, commit.failures),
        ):
            if found != committed:
                yield f"it holds {found} {what}, and {committed} were committed"
        if len(set(self._keys.values())) != len(self._keys):
            yield "two of its records have the same key"
        whole = set(self._whole)
        for row, key in self._keys.items():
            seen = self._seen.get(row, [])
            if row in whole:
                if seen or self._whole.count(row) > 1:
                    yield f"record {key!r} is in quarantine as a whole, and there once more"
            elif sorted(seen) != list(range(self._views.get(row, len(seen)))):
                yield f"record {key!r} should have each of its views once, it has {sorted(seen)}"
