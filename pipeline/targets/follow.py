"""What was committed since one last looked, for whoever follows a job from its store alone.

It knows which units it has told, and reads no commit record and no manifest twice. What the numbers add up to
is the reader's affair.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
import pyarrow as pa

from pipeline.targets.commit import Commit, unit_of
from pipeline.targets.manifest import PLAIN, SCHEMA, Manifest, among, ids_of
from pipeline.targets.storage import Entry
from pipeline.targets.store import Store

COLUMNS = pa.schema([SCHEMA.field(name) for name in PLAIN])
"""What is told of a unit: its commit record without statistics and histograms."""

_READ = 1000
"""Commit records that are objects at once."""


class UnitsTakenOut(Exception):
    """Units that were told are no longer in the store: what was added up is void, follow it anew."""


class Follower:
    """Tells each committed unit of a store once, while others label, compact and repair it.

    Memory: 32 bytes for each unit of the manifest, a string for each commit record beside it.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._manifest = Manifest(store.storage, 0, store.spec.fingerprint)
        self._records: set[str] = set()
        """Units that were told from their commit records and are not in `_manifest`."""
        self._sweep: Iterator[Entry] | None = None
        self._listed: set[str] = set()

    @property
    def committed(self) -> int:
        """Units that were told."""
        return len(self._manifest) + len(self._records)

    def refresh(self, most: int | None = None) -> Iterator[pa.RecordBatch]:
        """Units that were not told before, as batches of `COLUMNS`.

        most: commit records to list, and to read, on S3 one request for every 1,000 and one for each new one;
        the next call goes on behind the last name, so that each is seen again and again. None: all that there
        are. Raises UnitsTakenOut.
        """
        if self._sweep is None:
            self._sweep, self._listed = self._store.storage.list("commits/"), set()
        names = [entry.name for entry in islice(self._sweep, most)]
        found = {unit for name in names if (unit := unit_of(name))}
        self._listed |= found
        # Behind the listing: a record only ever vanishes into a manifest, or it is taken out.
        yield from self._folded()
        fresh = sorted(unit for unit in found - self._records if unit not in self._manifest)
        for start in range(0, len(fresh), _READ):
            commits = list(self._store.records(fresh[start : start + _READ]))
            self._records.update(commit.unit for commit in commits)
            yield _batch(commits)
        if most is None or len(names) < most:
            self._sweep = None
            if not self._records <= self._listed:
                yield from self._folded()
                if not self._records <= self._listed:
                    raise UnitsTakenOut

    def _folded(self) -> Iterator[pa.RecordBatch]:
        """Of the newest manifest, if it is another than before, the units that were not told."""
        newest = self._store.manifest()
        if newest.number == self._manifest.number:
            return
        if not among(self._manifest.units, newest.units).all():
            raise UnitsTakenOut
        told = np.sort(np.array(list(self._records), dtype="S32"))
        for batch in newest.plain():
            ids = ids_of(batch.column(0))
            fresh = ~(among(ids, self._manifest.units) | among(ids, told))
            yield batch.filter(pa.array(fresh)).replace_schema_metadata(None)
        self._records = {unit for unit in self._records if unit not in newest}
        self._manifest = newest


def _batch(commits: list[Commit]) -> pa.RecordBatch:
    columns = [pa.array([getattr(c, field.name) for c in commits], field.type) for field in COLUMNS]
    return pa.RecordBatch.from_arrays(columns, schema=COLUMNS)
