"""What of a store nothing refers to: files of attempts that lost or died, and what newer files replaced.

It knows what refers to what, and how long somebody may still be about to refer to a file. It deletes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from pipeline.targets.commit import unit_of
from pipeline.targets.storage import TEMPORARY

if TYPE_CHECKING:
    from pipeline.targets.store import Store

ATTEMPT = re.compile(r"(?:shards/[0-9a-f]{2}|quarantine)/(([0-9a-f]{32})-[0-9a-f]{16})\.[a-z.]+")
"""Names of files of an attempt: the attempt, and its unit."""


def garbage(store: Store, before: float) -> list[str]:
    """The names of files that nothing refers to, last changed before then (seconds since the epoch)."""
    manifest = store.latest_manifest()
    names = list(_attempts(store, before))
    for entry in store.storage.list("commits/"):
        unit = unit_of(entry.name)
        if unit and entry.modified <= before and unit in manifest:
            names.append(entry.name)
    names += [entry.name for entry in store.storage.list(TEMPORARY) if entry.modified <= before]
    numbered = sorted(store.storage.list("manifest/"), key=lambda entry: entry.name)
    # A reader may be in the middle of a manifest until the grace after the next one came.
    names += [entry.name for entry, successor in pairwise(numbered) if successor.modified <= before]
    return names


def _attempts(store: Store, before: float) -> Iterator[str]:
    """Shards and quarantine files of attempts that are not in the store."""
    live = {f"{commit.unit}-{commit.attempt}" for commit in store.records(sorted(store.record_units()))}
    live.update(store.manifest().attempts())
    for folder in ("shards/", "quarantine/"):
        for entry in store.storage.list(folder):
            attempt = ATTEMPT.fullmatch(entry.name)
            if not attempt or entry.modified > before or attempt[1] in live:
                continue
            # Once more, now that it is listed: it may have been committed meanwhile.
            winner = store.find(attempt[2])
            if winner is None or f"{winner.unit}-{winner.attempt}" != attempt[1]:
                yield entry.name
