"""Sums over commit records, and what they say of the rest."""

from __future__ import annotations

import pytest

from jobs.terminal import count, duration, size
from jobs.totals import Extent, Totals, estimate
from pipeline.targets.commit import Commit, shard_name


def commit(number: int, targets: int, entries: float, histogram: list[int]) -> Commit:
    unit, attempt = f"{number:032x}", "0" * 16
    return Commit(
        unit=unit,
        attempt=attempt,
        shard=shard_name(unit, attempt),
        shard_bytes=10 * targets,
        shard_sha256="0" * 64,
        records=3,
        rows=2,
        targets=targets,
        quarantined=0,
        failures=0,
        quarantine=None,
        quarantine_sha256=None,
        spec_fingerprint="0" * 32,
        statistics={"logits.entries": entries},
        histograms={"logits.entropy": histogram},
        started=100.0 * number,
        finished=100.0 * number + 50,
        forward_seconds=2.0,
        device="cpu",
    )


def test_means_are_weighted_by_targets_and_histograms_add_up() -> None:
    totals = Totals.of([commit(1, 100, 2.0, [1, 2]), commit(2, 300, 6.0, [10, 0])])
    assert totals.statistics == {"logits.entries": pytest.approx((100 * 2 + 300 * 6) / 400)}
    assert totals.histograms == {"logits.entropy": [11, 2]}
    assert (totals.units, totals.records, totals.targets, totals.shard_bytes) == (2, 6, 400, 4000)
    assert totals.bytes_per_target == 10
    assert (totals.started, totals.finished) == (100, 250)


def test_the_rest_is_judged_by_the_bytes_of_corpus_that_are_done() -> None:
    totals = Totals.of([commit(1, 100, 2.0, [1])])
    expected = estimate(Extent(planned=4, committed=1, planned_bytes=4000, committed_bytes=500), totals)
    assert expected is not None
    assert (expected.targets, expected.shard_bytes, expected.replica_seconds) == (700, 7000, 14)
    assert estimate(Extent(4, 0, 4000, 0), Totals()) is None


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (duration(None), "unknown"),
        (duration(59.4), "59 s"),
        (duration(59.6), "1 min 00 s"),
        (duration(3725), "1 h 02 min"),
        (duration(100_000), "1 d 3 h"),
        (size(999), "999 B"),
        (size(1500), "1.5 kB"),
        (size(3.2e12), "3.2 TB"),
        (count(1234567), "1,234,567"),
        (count(2.5e9), "2.50 G"),
    ],
)
def test_numbers_are_said_as_people_say_them(said: str, meant: str) -> None:
    assert said == meant
