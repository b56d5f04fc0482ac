"""A merge, unit by unit: the rows that meet, those that have no partner, and what is committed.

It knows rows by (key, view), and that only rows of equal inputs may meet. The destination has the units of
the first store, so it resumes like labelling: a unit that is committed is not merged again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pipeline.merge.combination import Average, Combine, Join, Mean
from pipeline.merge.partner import Partner
from pipeline.merge.spec import averaged, joined
from pipeline.statistics import Means
from pipeline.targets.commit import Commit
from pipeline.targets.errors import PlannedMeanwhile
from pipeline.targets.rows import Rows
from pipeline.targets.spec import Container
from pipeline.targets.store import Store
from pipeline.targets.unit import Quarantined

Mode = Literal["join", "average"]
Progress = Callable[[Commit], None]


@dataclass(frozen=True)
class Merged:
    """What a run of `merge` did. refused: rows that went to quarantine; waiting: units that the first store
    has planned and not labelled yet.
    """

    store: Store
    units: int
    rows: int
    refused: int
    waiting: int


def merge(
    url: str,
    stores: Mapping[str, Store],
    mode: Mode,
    average: Average = "logits",
    options: Mapping[str, Any] | None = None,
    container: Container | None = None,
    progress: Progress | None = None,
) -> Merged:
    """Merge stores, by name, into the one at `url`, which is made if it is not there.

    join: the heads of all, named "<store>_<head>". average: the first store's heads, each the mean over all
    stores of the distribution; of dense heads of the logits, or of the probabilities if `average` says so.
    Rows that are not in all stores, or not with the same inputs, go to quarantine ("no_partner",
    "inputs_differ").
    container: of the new store, the first store's if None. progress: called after each unit. Raises
    SpecMismatch for stores that cannot be merged so, UserError for names of heads that the container cannot
    hold, CorruptShard, StorageError.
    """
    first, *others = stores.values()
    kept = container or first.spec.container
    spec = joined(stores, kept) if mode == "join" else averaged(stores, kept, average)
    store = Store.create(url, spec, options)
    corpus = {"kind": "merged", "fingerprint": spec.teacher["fingerprint"]}
    while True:
        generation = store.generation()
        with contextlib.suppress(PlannedMeanwhile):
            store.write_plan(first.planned(), corpus, generation)
            break
    partners = dict(zip(list(stores)[1:], map(Partner, others), strict=True))
    combine: Combine = Join(list(stores)) if mode == "join" else Mean(spec, average)
    merger = _Merger(store, first, partners, combine)
    commits = {commit.unit: commit for commit in first.commits()}
    units = rows = refused = waiting = 0
    for unit in store.pending():
        labelled = commits.get(unit.id)
        if labelled is None:
            waiting += 1
            continue
        commit, lost = merger.unit(labelled)
        units, rows, refused = units + 1, rows + commit.rows, refused + lost
        if progress is not None:
            progress(commit)
    store.compact()
    return Merged(store, units, rows, refused, waiting)


class _Merger:
    """Merges unit by unit."""

    def __init__(self, store: Store, first: Store, partners: Mapping[str, Partner], combine: Combine) -> None:
        self._store, self._first, self._partners, self._combine = store, first, partners, combine

    def unit(self, labelled: Commit) -> tuple[Commit, int]:
        """Merge one unit of the first store: its commit record, and how many rows were refused."""
        started, means, refused = time.time(), Means(), []
        with self._store.writer(labelled.unit) as writer:
            for rows in self._first.read(labelled):
                kept, lost = self._rows(labelled.unit, rows)
                refused += lost
                if kept is None:
                    continue
                writer.write(kept)
                for head in self._store.spec.heads:
                    measured = head.codec.statistics(kept.heads[head.name], head.size)
                    means.add(head.name, measured, float(kept.counts(head).sum()))
            known = [*self._first.quarantined(labelled), *refused]
            for item in sorted(known, key=lambda item: (item.row, item.view or 0)):
                writer.quarantine(item)
            commit = writer.commit(
                records=labelled.records,
                filtered=labelled.filtered,
                statistics=means.values(),
                histograms={},
                started=started,
                forward_seconds=0.0,
                device="",
            )
        return commit, len(refused)

    def _rows(self, unit: str, rows: Rows) -> tuple[Rows | None, list[Quarantined]]:
        """Those of some rows of the first store that have partners, merged; the others."""
        refused: dict[int, tuple[str, str]] = {}
        parts = [rows]
        for name, partner in self._partners.items():
            found = partner.find(unit, rows)
            for i in np.flatnonzero(found < 0).tolist():
                refused.setdefault(i, ("no_partner", f"{name} has no targets of it"))
            if (found >= 0).any():
                parts.append(partner.take(np.where(found >= 0, found, found.max())))
                for i in _unlike(rows, parts[-1]):
                    refused.setdefault(i, ("inputs_differ", f"its inputs in {name} are others"))
        kept = np.array([i for i in range(len(rows)) if i not in refused], dtype=np.int64)
        merged: Rows | None = None
        while len(kept):
            chosen = [part.take(kept) for part in parts]
            heads, bad = self._combine(chosen)
            if not bad:
                targets = np.max([part.targets for part in chosen], axis=0)
                merged = dataclasses.replace(chosen[0], spec=self._store.spec, heads=heads, targets=targets)
                break
            for i, reason in bad.items():
                refused[int(kept[i])] = ("non_finite", reason)
            kept = np.delete(kept, list(bad))
        return merged, [
            Quarantined(rows.keys[i], int(rows.row[i]), int(rows.view[i]), code, f"{rows.keys[i]}: {reason}")
            for i, (code, reason) in sorted(refused.items())
        ]


def _unlike(ours: Rows, theirs: Rows) -> Iterator[int]:
    """Rows whose inputs, or whose number of targets, are not the same in two stores."""
    for i in range(len(ours)):
        same = not (ours.targets[i] and theirs.targets[i]) or ours.targets[i] == theirs.targets[i]
        for name, array in ours.inputs.items():
            same = same and np.array_equal(array[i], theirs.inputs[name][i])
        if not same:
            yield i
