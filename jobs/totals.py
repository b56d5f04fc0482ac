"""Sums over commit records: what a store holds, and what the rest of its plan will take.

It knows commit records and nothing of shards. Means per target are weighted by each unit's targets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.targets.commit import Commit
    from pipeline.targets.spec import Spec
    from pipeline.targets.store import Store


@dataclass
class Totals:
    """Sums of some commit records.

    targets: of the "next_token" heads; of a store that has none, its rows. shard_bytes: everything in the
    shards' files. forward_seconds: that teachers computed, of all replicas together.
    """

    units: int = 0
    records: int = 0
    rows: int = 0
    targets: int = 0
    quarantined: int = 0
    failures: int = 0
    filtered: int = 0
    shard_bytes: int = 0
    forward_seconds: float = 0.0
    started: float | None = None
    finished: float | None = None
    devices: Counter[str] = field(default_factory=Counter)
    histograms: dict[str, list[int]] = field(default_factory=dict)
    _sums: dict[str, float] = field(default_factory=dict)
    _weights: dict[str, float] = field(default_factory=dict)

    def add(self, commit: Commit) -> None:
        """Puts one commit record in."""
        weight = commit.targets or commit.rows
        self.units += 1
        self.records += commit.records
        self.rows += commit.rows
        self.targets += weight
        self.quarantined += commit.quarantined
        self.failures += commit.failures
        self.filtered += commit.filtered
        self.shard_bytes += commit.shard_bytes
        self.forward_seconds += commit.forward_seconds
        self.started = commit.started if self.started is None else min(self.started, commit.started)
        self.finished = commit.finished if self.finished is None else max(self.finished, commit.finished)
        self.devices[commit.device] += 1
        for name, mean in commit.statistics.items():
            self._sums[name] = self._sums.get(name, 0.0) + mean * weight
            self._weights[name] = self._weights.get(name, 0.0) + weight
        for name, bins in commit.histograms.items():
            known = self.histograms.setdefault(name, [0] * len(bins))
            self.histograms[name] = [a + b for a, b in zip(known, bins, strict=True)]

    @classmethod
    def of(cls, commits: Iterable[Commit]) -> Totals:
        """The sums of all of them, read as a stream."""
        totals = cls()
        for commit in commits:
            totals.add(commit)
        return totals

    @property
    def statistics(self) -> dict[str, float]:
        """Means per target by "<head>.<name>"."""
        return {name: self._sums[name] / weight for name, weight in self._weights.items() if weight}

    @property
    def bytes_per_target(self) -> float | None:
        """Of the shards' files, everything counted; None before the first target."""
        return self.shard_bytes / self.targets if self.targets else None


@dataclass(frozen=True)
class Extent:
    """How much of a plan is done. Bytes are of the corpus, as planned."""

    planned: int
    committed: int
    planned_bytes: int
    committed_bytes: int

    @classmethod
    def of(cls, store: Store) -> Extent:
        """Streams the plan once."""
        committed = store.committed()
        units = done = size = done_size = 0
        for unit in store.planned():
            units += 1
            size += unit.size_bytes
            if unit.id in committed:
                done += 1
                done_size += unit.size_bytes
        return cls(units, done, size, done_size)

    @property
    def pending(self) -> int:
        """Units that have no commit record."""
        return self.planned - self.committed


@dataclass(frozen=True)
class Estimate:
    """What the pending units will take, if they are like the committed ones, byte for byte of corpus."""

    targets: float
    shard_bytes: float
    replica_seconds: float


def estimate(extent: Extent, totals: Totals) -> Estimate | None:
    """None while nothing is committed to judge by."""
    if not extent.committed_bytes:
        return None
    scale = (extent.planned_bytes - extent.committed_bytes) / extent.committed_bytes
    return Estimate(totals.targets * scale, totals.shard_bytes * scale, totals.forward_seconds * scale)


def targets_are(spec: Spec) -> str:
    """What a target is called here: "tokens" where a head says the next token, else "targets"."""
    return "tokens" if any(head.positions == "next_token" for head in spec.heads) else "targets"
