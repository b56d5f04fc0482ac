"""The units of `benchmarks.scale`, and their commit records: of a usual size, and of no content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from pipeline.targets.commit import Commit, shard_name
from pipeline.targets.unit import Slice, Unit


def units(count: int) -> Iterator[Unit]:
    """Ranges of large files, 16 MB each, as a corpus of Parquet files gives them."""
    for number in range(count):
        file, part = divmod(number, 64)
        url = f"s3://bucket/corpus/part-{file:06d}.parquet"
        yield Unit((Slice(url, part * 4000, (part + 1) * 4000, 1 << 30, f"{file:032x}"),), 16_000_000)


def commit_of(unit: str, fingerprint: str) -> Commit:
    """A record of a usual size: a dozen statistics, a histogram."""
    attempt = unit[:16]
    return Commit(
        unit=unit,
        attempt=attempt,
        shard=shard_name(unit, attempt),
        shard_bytes=48_000_000,
        shard_sha256=hashlib.sha256(unit.encode()).hexdigest(),
        records=4000,
        rows=4000,
        targets=4_000_000,
        quarantined=0,
        failures=0,
        quarantine=None,
        quarantine_sha256=None,
        spec_fingerprint=fingerprint,
        statistics={f"logits.statistic_{i}": 1.5 * i for i in range(6)},
        histograms={"logits.entropy": [100_000] * 40},
        started=1.8e9,
        finished=1.8e9 + 60,
        forward_seconds=58.0,
        device="cuda: NVIDIA H100 80GB HBM3",
    )
