"""What a store is made of: entries, bytes by column, likelihoods, throughput.

Sums and means come from the commit records, read as a stream. What they do not hold (percentiles, the bytes
of a column) comes from a sample of the shards, or from all of them. Everything is returned as plain data that
`json.dumps` takes; how it is drawn is the command's affair.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from jobs.totals import Totals, targets_are
from pipeline.targets.decoded import DenseTargets, SparseTargets, Targets, TopKTargets, TopPTargets

if TYPE_CHECKING:
    from pipeline.targets.commit import Commit
    from pipeline.targets.spec import Head
    from pipeline.targets.store import Store

PERCENTILES = (1, 5, 25, 50, 75, 95, 99, 100)


def statistics(
    store: Store, shards: int | None, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """A store in numbers. shards: how many are read for what commit records do not say, None for all.

    progress: told how many are read, and of how many. Raises CorruptShard for one that is damaged.
    """
    totals, devices = Totals(), dict[str, _Device]()
    having = 0
    sample: list[tuple[bytes, str, Commit]] = []
    for commit in store.commits():
        totals.add(commit)
        devices.setdefault(commit.device, _Device()).add(commit)
        having += commit.shard is not None
        if commit.shard is not None and shards is not None:
            heapq.heappush(sample, (_order(commit), commit.unit, commit))
            if len(sample) > shards:
                heapq.heappop(sample)
    chosen = store.commits() if shards is None else iter([commit for _, _, commit in sorted(sample)])
    reading = having if shards is None else len(sample)
    columns, entries, sampled = _Columns(), {head.name: _Entries() for head in store.spec.heads}, Totals()
    for commit in chosen:
        if commit.shard is None:
            continue
        if store.spec.container == "parquet":
            columns.add(store, commit)
        sampled.add(commit)
        for rows in store.read(commit):
            for head in store.spec.heads:
                entries[head.name].add(rows.decode(head.name))
        if progress is not None:
            progress(sampled.units, reading)
    return {
        "store": store.url,
        "target": targets_are(store.spec),
        "units": {"planned": store.planned_count(), "committed": totals.units},
        "records": totals.records,
        "rows": totals.rows,
        "targets": totals.targets,
        "quarantined": {"failures": totals.failures, "empty": totals.quarantined - totals.failures},
        "shard_bytes": totals.shard_bytes,
        "bytes_per_target": totals.bytes_per_target,
        "heads": {head.name: _head(head, totals, entries[head.name]) for head in store.spec.heads},
        "sampled": {"shards": sampled.units, "of": having, "rows": sampled.rows, "targets": sampled.targets},
        "columns": columns.described(sampled),
        "devices": {name: device.described() for name, device in sorted(devices.items())},
    }


def _order(commit: Commit) -> bytes:
    """Which shards a sample takes: the same ones each time, and none for what is in it."""
    return hashlib.blake2b(commit.unit.encode(), digest_size=8, person=b"statistics").digest()


@dataclass
class _Device:
    """What one device labelled."""

    units: int = 0
    targets: int = 0
    seconds: float = 0.0

    def add(self, commit: Commit) -> None:
        self.units += 1
        self.targets += commit.targets or commit.rows
        self.seconds += commit.forward_seconds

    def described(self) -> dict[str, Any]:
        return {
            "units": self.units,
            "targets": self.targets,
            "forward_seconds": self.seconds,
            "targets_per_forward_second": self.targets / self.seconds if self.seconds else None,
        }


class _Columns:
    """Bytes of each column, as Parquet files' own metadata say; of other containers nothing."""

    def __init__(self) -> None:
        self._stored: dict[str, int] = {}
        self._plain: dict[str, int] = {}

    def add(self, store: Store, commit: Commit) -> None:
        from pipeline.targets.parquet_file import parquet_file

        assert commit.shard is not None
        with store.storage.open(commit.shard) as file:
            metadata = parquet_file(file).metadata
        for group in range(metadata.num_row_groups):
            for number in range(metadata.num_columns):
                column = metadata.row_group(group).column(number)
                name = column.path_in_schema
                self._stored[name] = self._stored.get(name, 0) + column.total_compressed_size
                self._plain[name] = self._plain.get(name, 0) + column.total_uncompressed_size

    def described(self, sampled: Totals) -> list[dict[str, Any]]:
        """Columns, the largest first, and what belongs to none."""
        rest = sampled.shard_bytes - sum(self._stored.values())
        listed: list[dict[str, Any]] = [
            {"name": name, "bytes": stored, "uncompressed_bytes": self._plain[name]}
            for name, stored in sorted(self._stored.items(), key=lambda item: -item[1])
        ]
        if self._stored:
            listed.append({"name": "(file metadata)", "bytes": rest, "uncompressed_bytes": rest})
        for item in listed:
            item["bytes_per_target"] = item["bytes"] / sampled.targets if sampled.targets else None
        return listed


class _Entries:
    """How many targets have how many entries."""

    def __init__(self) -> None:
        self._counts: npt.NDArray[np.int64] = np.zeros(1, dtype=np.int64)

    def add(self, targets: Targets) -> None:
        found = np.bincount(_stored_classes(targets), minlength=len(self._counts))
        found[: len(self._counts)] += self._counts
        self._counts = found

    def percentiles(self) -> dict[str, int] | None:
        """The least number that so many percent of the targets do not exceed; None before the first."""
        total = int(self._counts.sum())
        if not total:
            return None
        running = np.cumsum(self._counts)
        wanted = [math.ceil(total * percent / 100) for percent in PERCENTILES]
        return {
            str(percent): int(np.searchsorted(running, least))
            for percent, least in zip(PERCENTILES, wanted, strict=True)
        }


def _stored_classes(targets: Targets) -> npt.NDArray[np.int64]:
    """Entries of each target, int64 [N]; none for targets that have no classes."""
    match targets:
        case DenseTargets(logits):
            return np.full(len(logits), logits.shape[1], dtype=np.int64)
        case TopKTargets(ids):
            return np.full(len(ids), ids.shape[1], dtype=np.int64)
        case SparseTargets() | TopPTargets():
            return np.diff(targets.offsets)
    return np.zeros(0, dtype=np.int64)


def _head(head: Head, totals: Totals, entries: _Entries) -> dict[str, Any]:
    def mean(name: str) -> float | None:
        return totals.statistics.get(f"{head.name}.{name}")

    nll = mean("label_nll")
    return {
        "codec": head.codec.to_json(),
        "size": head.size,
        "positions": head.positions,
        "entries": {"mean": mean("entries"), "percentiles": entries.percentiles()},
        "payload_bytes": mean("payload_bytes"),
        "captured_mass": mean("captured_mass"),
        "entropy": mean("entropy"),
        "entropy_histogram": totals.histograms.get(f"{head.name}.entropy"),
        "label_nll": nll,
        "perplexity": None if nll is None else math.exp(nll),
    }
