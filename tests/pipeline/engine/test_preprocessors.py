"""Preprocessing actors: the same bytes as without them, whatever happens to them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.engine.base import Committed, Event, Failed, PreprocessorLost, PreprocessorStarted, ReplicaLost
from pipeline.engine.base import Started as ReplicaStarted
from pipeline.engine.preprocessor import CHUNK_BYTES
from pipeline.job import LabelJob
from pipeline.label import Labeller
from pipeline.prepare import prepare
from pipeline.targets.store import Store

MakeJob = Callable[..., LabelJob]
Whole = Callable[[Store], None]
Contents = dict[str, tuple[str | None, int, list[Any]]]

TEXTS: dict[str, str | bytes] = {
    f"{i:04}.txt": " ".join(f"w{(i * 7 + j * 3) % 90}" for j in range(3 + i % 30)) for i in range(240)
} | {"0007x.txt": b"\xff\xfe", "0190x.txt": ""}
"""Two units of many chunks, one file that is not text, one that is empty."""

UNIT_BYTES = 9_000


@pytest.fixture(autouse=True)
def _on_ray(ray_session: None) -> None:
    """All of them."""


def feeding(actors: int = 1, **label: Any) -> dict[str, Any]:
    """Settings of a pool that is fed."""
    return {
        "engine": "ray",
        "replicas": {"cpus": 0.5, **label.pop("replicas", {})},
        "preprocess": {"actors": actors, "cpus": 0.5, **label.pop("preprocess", {})},
        "batching": {"budget": 64, "window": 1},
        "max_quarantined": 0.2,
        "profile": True,
        **label,
    }


def contents(store: Store) -> Contents:
    """Bytes of the shard, records and quarantine of each unit."""
    return {
        commit.unit: (commit.shard_sha256, commit.records, list(store.quarantined(commit)))
        for commit in store.commits()
    }


@pytest.fixture
def alone(make_job: MakeJob) -> Contents:
    """What a bare labeller makes of the corpus."""
    job = make_job(TEXTS, store="alone", unit_bytes=UNIT_BYTES)
    store, labeller = prepare(job), Labeller(job)
    for unit in store.pending():
        labeller.label(unit)
    return contents(store)


def drive(job: LabelJob, store: Store, on: Callable[[Event], None] = lambda _: None) -> list[Event]:
    from pipeline.engine.ray import RayEngine

    events: list[Event] = []
    for event in RayEngine().run(job, store.pending(), threading.Event()):
        events.append(event)
        on(event)
    return events


def fed(events: list[Event]) -> int:
    """Units that a preprocessing actor rendered any of."""
    profiles = [event.profile for event in events if isinstance(event, Committed)]
    return sum(profile is not None and "receive" in profile.working for profile in profiles)


class Killer:
    """Sends a signal to the first of its victims, a moment after that and a replica have begun."""

    def __init__(self, victim: type[Event], number: signal.Signals, seconds: float = 0.3) -> None:
        self._victim, self._number, self._seconds = victim, number, seconds
        self.pids: list[int] = []
        self._labelling = self._fired = False

    def __call__(self, event: Event) -> None:
        if isinstance(event, self._victim):
            self.pids.append(event.pid)
        self._labelling |= isinstance(event, ReplicaStarted)
        if self.pids and self._labelling and not self._fired:
            self._fired = True
            threading.Timer(self._seconds, os.kill, (self.pids[0], self._number)).start()


@pytest.mark.slow
def test_a_preprocessing_actor_that_is_killed_loses_and_doubles_nothing_and_is_replaced(
    make_job: MakeJob, whole: Whole, alone: Contents
) -> None:
    job = make_job(TEXTS, unit_bytes=UNIT_BYTES, label=feeding(), teacher={"seconds_per_view": 0.006})
    store = prepare(job)
    killer = Killer(PreprocessorStarted, signal.SIGKILL)
    events = drive(job, store, killer)
    whole(store)
    assert contents(store) == alone
    assert fed(events) > 0
    (lost,) = (event for event in events if isinstance(event, PreprocessorLost))
    assert lost.pid == killer.pids[0]
    assert not any(isinstance(event, Failed | ReplicaLost) for event in events), "no unit is blamed"


@pytest.mark.slow
def test_a_preprocessing_actor_that_hangs_is_killed_and_its_replicas_go_on(
    make_job: MakeJob, whole: Whole, alone: Contents
) -> None:
    label = feeding(preprocess={"timeout_seconds": 1.0})
    job = make_job(TEXTS, unit_bytes=UNIT_BYTES, label=label, teacher={"seconds_per_view": 0.008})
    store = prepare(job)
    events = drive(job, store, Killer(PreprocessorStarted, signal.SIGSTOP))
    whole(store)
    assert contents(store) == alone
    assert sum(isinstance(event, PreprocessorLost) for event in events) == 1
    assert not any(isinstance(event, Failed | ReplicaLost) for event in events)


@pytest.mark.slow
def test_a_fed_replica_that_is_killed_loses_nothing(make_job: MakeJob, whole: Whole, alone: Contents) -> None:
    label = feeding(2, replicas={"max": 2})
    job = make_job(TEXTS, unit_bytes=UNIT_BYTES, label=label, teacher={"seconds_per_view": 0.008})
    store = prepare(job)
    events = drive(job, store, Killer(ReplicaStarted, signal.SIGKILL))
    whole(store)
    assert contents(store) == alone
    assert any(isinstance(event, ReplicaLost) for event in events)
    assert not any(isinstance(event, PreprocessorLost) for event in events)


@pytest.mark.slow
def test_what_goes_through_rays_object_store_is_bounded(
    make_job: MakeJob, whole: Whole, tmp_path: Path
) -> None:
    import ray

    from pipeline.engine.feeding import Preprocessors

    images = np.random.default_rng(0).normal(size=(120, 256, 256)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    job = make_job(
        label=feeding(batching={"budget": 8}),
        teacher={"positions": "single", "size": 8, "seconds_per_view": 0.005},
        corpus={"kind": "arrays", "urls": [str(tmp_path / "images.npy")], "unit_rows": 60},
        views={"kind": "arrays", "shape": [256, 256]},
    )
    store, bound = prepare(job), Preprocessors(job).object_bytes
    most, over = 0.0, threading.Event()

    def used() -> float:
        whole_store = ray.cluster_resources()["object_store_memory"]
        return float(whole_store - ray.available_resources()["object_store_memory"])

    def look() -> None:
        nonlocal most
        while not over.wait(0.05):
            most = max(most, used())

    watching = threading.Thread(target=look)
    watching.start()
    try:
        events = drive(job, store)
    finally:
        over.set()
        watching.join()
    whole(store)
    assert fed(events) > 0
    assert 0 < most <= bound < images.nbytes
    assert bound >= 2 * CHUNK_BYTES
