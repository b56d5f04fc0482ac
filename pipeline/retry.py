"""Retry: what is in quarantine for a reason that may have passed is labelled, and put to what its unit has.

It knows which units have such records, what becomes of one, and how the new shards take the place of the
present ones: those of a group of units at a time, in one new manifest. Until then nothing in the store has
changed, so that a run that is killed costs its work and nothing else. Who labels which unit it does not know.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Container, Iterator, Mapping
from contextlib import closing
from dataclasses import replace

from pipeline.label import Due, Labeller
from pipeline.rendering import NOTHING, records_of
from pipeline.statistics import Means
from pipeline.targets.commit import Commit
from pipeline.targets.rows import Rows, in_order
from pipeline.targets.store import Store
from pipeline.targets.unit import Quarantined, Unit

PASSING = ("killed", "teacher_failed", "undecodable")
"""Codes of reasons that may pass: memory ran out, an accelerator failed, a decoder was not installed."""

OF_ROWS = (
    *("attempt", "shard", "shard_bytes", "shard_sha256", "rows", "targets"),
    *("quarantine", "quarantine_sha256", "quarantined", "failures", "statistics", "histograms"),
    *("started", "finished", "forward_seconds", "device"),
)
"""Of a commit record, what changes when more of its unit is labelled."""

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
        """A unit was labelled again (`relabel`)."""
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


def relabel(
    labeller: Labeller, unit: Unit, codes: Container[str], skip: Mapping[int, str] = NOTHING
) -> Commit:
    """Label what a committed unit has in quarantine for one of these reasons; leave its rows as they are.

    The record to put in the place of the present one (`Store.replace`), its files durable; the present
    one if there is still no target for any of it. Raises as `Labeller.label`.
    """
    store = labeller.store
    before = store.find(unit.id)
    if before is None:
        raise ValueError(f"unit {unit.id} is not committed")
    started = time.time()
    present = list(store.quarantined(before))
    due = {(item.row, item.view) for item in present if item.code in codes}
    due_rows = {row for row, _ in due}
    # Views that are mixed with earlier records need those too.
    whole = labeller.reach > 0
    records = (r for r in records_of(labeller.job.corpus, unit, skip) if whole or r.row in due_rows)
    rows, means, seconds, device = list[Rows](), Means(), before.forward_seconds, before.device
    left = [item for item in present if (item.row, item.view) not in due]
    with closing(labeller.windows(labeller.render(records), due=due)) as results:
        for window, parts, unlabelled in results:
            for part in parts:
                rows.append(part.rows)
                means.merge(part.means)
                seconds, device = seconds + part.seconds, part.device
            left += [again for item in (*window.quarantined, *unlabelled) for again in _of(item, due)]
    if not rows:
        return before
    with store.writer(unit.id) as writer:
        for merged in in_order(store.read(before), Rows.concatenate(rows)):
            writer.write(merged)
        for item in sorted(left, key=lambda q: (q.row, q.view or 0)):
            writer.quarantine(item)
        after = writer.commit(
            records=before.records,
            statistics=means.values_with(before.statistics, before.targets),
            histograms=means.histograms_with(before.histograms),
            started=started,
            forward_seconds=seconds,
            device=device,
            publish=False,
        )
    # What is said of the unit's records, and not of their rows, stays.
    return replace(before, **{name: getattr(after, name) for name in OF_ROWS})


def _of(item: Quarantined, due: Due) -> list[Quarantined]:
    """What it says of what is due: a record that now fails as a whole may have other views, with targets."""
    if (item.row, None) in due or item.view is not None:
        return [item]
    return [replace(item, view=view) for row, view in due if row == item.row]
