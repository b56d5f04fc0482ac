"""kill -9 at random moments, of what labels, of replicas, of Ray's driver: nothing lost, nothing twice.

`pytest --kills 100` kills a hundred times. The seed of the moments is fixed; what they hit is not.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.engine.base import Started
from pipeline.job import LabelJob
from pipeline.prepare import prepare
from pipeline.targets.rows import Rows
from pipeline.targets.store import Store
from tests.pipeline.engine.drivers import labelling

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

MakeJob = Callable[..., LabelJob]
Whole = Callable[[Store], None]


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--kills"))


@pytest.fixture
def job_of(make_job: MakeJob, texts: dict[str, str]) -> Callable[..., LabelJob]:
    """About 40 units of about 0.1 seconds, with one view that has no target and a file that is not text."""
    known: dict[str, str | bytes] = {f"{i}-{name}": text for i in range(2) for name, text in texts.items()}
    known |= {"0-0007x.txt": "w1 w2 poison w3", "1-0020x.txt": b"\xff\xfe", "1-0030x.txt": ""}

    def make(store: str, engine: str = "local", seconds_per_view: float = 0.008, **label: object) -> LabelJob:
        return make_job(
            known,
            store=store,
            unit_bytes=1000,
            teacher={"nan_on": 90, "seconds_per_view": seconds_per_view},
            label={"engine": engine, "max_quarantined": 0.2, "attempts": 10**6, **label},
        )

    return make


@pytest.fixture
def as_uninterrupted(job_of: Callable[..., LabelJob], whole: Whole) -> Callable[[Store], None]:
    """Asserts that a store is whole and holds what an uninterrupted run stores, row by row."""
    from pipeline.label import Labeller

    job = job_of("uninterrupted", seconds_per_view=0.0)
    expected, labeller = prepare(job), Labeller(job)
    for unit in expected.pending():
        labeller.label(unit)

    def check(store: Store) -> None:
        whole(store)
        store.gc(grace_seconds=0.0)
        store.compact()
        whole(store)
        theirs = {commit.unit: commit for commit in expected.commits()}
        ours = {commit.unit: commit for commit in store.commits()}
        assert set(ours) == set(theirs)
        for unit, commit in ours.items():
            assert commit.shard_sha256 == theirs[unit].shard_sha256
            assert list(store.quarantined(commit)) == list(expected.quarantined(theirs[unit]))
            assert commit.records == theirs[unit].records
            if commit.shard is not None:
                mine, other = (
                    Rows.concatenate(list(s.read(c))) for s, c in ((store, commit), (expected, theirs[unit]))
                )
                assert mine.keys == other.keys
                np.testing.assert_array_equal(
                    mine.decode("logits").weights,  # type: ignore[union-attr]
                    other.decode("logits").weights,  # type: ignore[union-attr]
                )

    return check


def in_session(leader: int) -> list[int]:
    """Processes of the session that this process once led."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it ended meanwhile
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def test_a_local_run_killed_at_random_moments_goes_on_and_ends_as_if_nothing_had_been(
    job_of: Callable[..., LabelJob],
    as_uninterrupted: Callable[[Store], None],
    kills: int,
    tmp_path: Path,
) -> None:
    moments = random.Random(0)
    killed = rounds = 0
    while killed < kills:
        job = job_of(f"store-{rounds}")
        store, rounds, done = prepare(job), rounds + 1, False
        while not done:
            with labelling(job, tmp_path) as process:
                if killed < kills:
                    time.sleep(moments.uniform(0.0, 0.7))
                else:
                    process.wait()
                done = process.poll() is not None
                if done:
                    assert process.returncode == 0
            killed += not done
            assert store.verify().problems == ()
        as_uninterrupted(store)


def test_replicas_killed_at_random_moments_lose_nothing(
    job_of: Callable[..., LabelJob],
    as_uninterrupted: Callable[[Store], None],
    kills: int,
    ray_session: None,
) -> None:
    from pipeline.engine.ray import RayEngine

    moments = random.Random(1)
    killed: list[int] = []
    rounds = 0

    def kill(pid: int) -> None:
        # Only if it is still a replica: the run may have ended meanwhile.
        with contextlib.suppress(OSError):
            if b"ray::" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    while len(killed) < kills:
        job = job_of(f"store-{rounds}", "ray", 0.02, replicas={"cpus": 0.5, "max": 2})
        store, rounds = prepare(job), rounds + 1
        timers: list[threading.Timer] = []
        for event in RayEngine().run(job, store.pending(), threading.Event()):
            if isinstance(event, Started) and len(killed) < kills:
                timer = threading.Timer(moments.uniform(0.0, 1.5), kill, (event.pid,))
                timer.start()
                timers.append(timer)
        for timer in timers:
            timer.cancel()
            timer.join()
        as_uninterrupted(store)


def test_a_driver_killed_at_random_moments_leaves_no_process_and_loses_nothing(
    job_of: Callable[..., LabelJob],
    as_uninterrupted: Callable[[Store], None],
    kills: int,
    tmp_path: Path,
) -> None:
    moments = random.Random(2)
    job = job_of("store", "ray", 0.02, replicas={"cpus": 0.5, "max": 2})
    store = prepare(job)
    leaders = []
    for _ in range(max(1, kills // 5)):
        with labelling(job, tmp_path) as process:
            leaders.append(process.pid)
            time.sleep(moments.uniform(0.0, 1.5))
        assert store.verify().problems == ()
    # The next run begins while what the killed one left may still be at work.
    with labelling(job, tmp_path) as process:
        assert process.wait() == 0
    as_uninterrupted(store)
    deadline = time.monotonic() + 180
    while left := [pid for leader in leaders for pid in in_session(leader)]:
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.5)
