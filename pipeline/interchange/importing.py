"""An import, from a source to commit records: planned like a corpus, and resumed like labelling.

It knows importers and the store; formats and progress bars it does not know.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.interchange.base import Importer
from pipeline.interchange.source import Source
from pipeline.statistics import Means
from pipeline.targets.commit import Commit
from pipeline.targets.errors import CorpusUnreadable, PlannedMeanwhile, TooManyQuarantined
from pipeline.targets.rows import Rows
from pipeline.targets.store import Store
from pipeline.targets.unit import Quarantined, Unit

EVIDENCE = 100
"""Failures of a unit without one success that are no bad luck."""

GROUP_TARGETS = 1024
"""Targets that are written at once, about."""


def prepare(importer: Importer, source: Source, url: str, options: Mapping[str, Any] | None = None) -> Store:
    """Make or open the store of an import, and plan it.

    Raises SpecMismatch when the store holds another import, ConfigError when the source is not what the
    importer was told, CorpusUnreadable when a file of it is broken or half-written.
    """
    spec = importer.spec(source)
    first = next(importer.units(source), None)
    if first is None:
        raise CorpusUnreadable(
            f"{source.url} has no rows: a writer that died leaves such files; import what has been written"
        )
    importer.check(source, first)
    store = Store.create(url, spec, options)
    # The spec names the source's content, so a plan that is there is the plan of this import.
    if not store.generation():
        corpus = {"kind": "import", "source": source.url, "format": spec.teacher["format"]}
        with contextlib.suppress(PlannedMeanwhile):
            store.write_plan(importer.units(source), corpus, 0)
    return store


def run(importer: Importer, source: Source, store: Store) -> Iterator[Commit]:
    """Import the units that have no commit record yet, and give each one's as soon as it has.

    Raises CorpusChanged, CorpusUnreadable, StorageError, and TooManyQuarantined when EVIDENCE records or more
    of a unit failed and none was right. Then nothing of that unit is committed.
    """
    for unit in store.pending():
        yield _commit(importer, source, store, unit)


def _commit(importer: Importer, source: Source, store: Store, unit: Unit) -> Commit:
    started, means, failures, rows = time.time(), Means(), 0, 0
    records: set[int] = set()
    waiting: list[Rows] = []
    with store.writer(unit.id) as writer:
        for item in importer.read(source, unit, store.spec):
            if isinstance(item, Quarantined):
                writer.quarantine(item)
                records.add(item.row)
                failures += item.code != "empty"
                if failures >= EVIDENCE and not rows:
                    raise TooManyQuarantined(
                        f"none of {failures} records of {source.url} is what it should be, for example "
                        f"{item.reason}; nothing of unit {unit.id} is committed"
                    )
                continue
            records.update(item.row.tolist())
            rows += len(item)
            for head in store.spec.heads:
                statistics = head.codec.statistics(item.heads[head.name], head.size)
                means.add(head.name, statistics, float(item.counts(head).sum()))
            waiting.append(item)
            if sum(int(part.targets.sum()) + len(part) for part in waiting) >= GROUP_TARGETS:
                writer.write(Rows.concatenate(waiting))
                waiting = []
        if waiting:
            writer.write(Rows.concatenate(waiting))
        return writer.commit(
            records=len(records),
            statistics=means.values(),
            histograms={},
            started=started,
            forward_seconds=0.0,
            device="import",
        )
