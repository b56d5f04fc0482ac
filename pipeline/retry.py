"""Retry: what is in quarantine for a reason that may have passed is labelled, and put to what its unit has.

It knows which units have such records, and how the new shards take the place of the present ones: those of a
group of units at a time, in one new manifest. Until then nothing in the store has changed, so that a run that
is killed costs its work and nothing else. Who labels them it does not know.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from pipeline.targets.commit import Commit
from pipeline.targets.store import Store
from pipeline.targets.unit import Unit

PASSING = ("killed", "teacher_failed", "undecodable")
"""Codes of reasons that may pass: memory ran out, an accelerator failed, a decoder was not installed."""

GROUP = 256
"""Units that are replaced at a time: each time costs a manifest."""


class Replacements:
    """The units of a retry, and what becomes of them. found: quarantined views and records that are due."""

    def __init__(self, store: Store, codes: Collection[str]) -> None:
        """Reads the quarantine of every unit that has failures."""
        self._store = store
        self._present: dict[str, Commit] = {}
        self._new: list[tuple[Commit, Commit]] = []
        self.found = self.labelled = 0
        for commit in store.commits():
            due = sum(item.code in codes for item in store.quarantined(commit)) if commit.failures else 0
            if due:
                self.found += due
                self._present[commit.unit] = commit

    def __len__(self) -> int:
        return len(self._present)

    def units(self) -> Iterator[Unit]:
        """Those that have something to retry, in the order of the plan."""
        for unit in self._store.planned():
            if unit.id in self._present:
                yield unit

    def add(self, commit: Commit) -> None:
        """A unit was labelled again (`Labeller.relabel`)."""
        present = self._present[commit.unit]
        if commit.attempt != present.attempt:
            self.labelled += present.quarantined - commit.quarantined
            self._new.append((present, commit))
        if len(self._new) >= GROUP:
            self.flush()

    def flush(self) -> None:
        """Have the store hold what was added."""
        if self._new:
            self._store.replace(self._new)
            self._new.clear()
