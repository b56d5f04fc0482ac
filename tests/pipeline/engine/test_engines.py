"""What every engine promises, and what Ray's promises besides."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.engine.base import Committed, Engine, Event, Failed, ReplicaLost, ReplicaPending, Started
from pipeline.engine.local import Local
from pipeline.job import LabelJob
from pipeline.label import Labeller
from pipeline.prepare import prepare
from pipeline.profile import STAGES, Profile
from pipeline.targets.errors import (
    ConfigError,
    LabellingFailed,
    SpecMismatch,
    StorageError,
    TeacherError,
    TooManyQuarantined,
)
from pipeline.targets.store import Store
from pipeline.targets.unit import Unit

MakeJob = Callable[..., LabelJob]
Whole = Callable[[Store], None]
POISON = {"0005.txt": "w1 w2 w3 poison w4"}


@pytest.fixture(params=["local", "ray"])
def engine(request: pytest.FixtureRequest) -> Engine:
    return Local() if request.param == "local" else ray_engine(request)


ray_is_slow = pytest.mark.parametrize(
    "engine", ["local", pytest.param("ray", marks=pytest.mark.slow)], indirect=True
)


@pytest.fixture
def on_ray(request: pytest.FixtureRequest) -> Engine:
    return ray_engine(request)


def ray_engine(request: pytest.FixtureRequest) -> Engine:
    request.getfixturevalue("ray_session")
    from pipeline.engine.ray import RayEngine

    return RayEngine()


def small(**replicas: Any) -> dict[str, Any]:
    """Settings for replicas that are cheap to place."""
    return {"replicas": {"cpus": 0.5, **replicas}, "batching": {"budget": 256, "window": 1}}


def drive(engine: Engine, job: LabelJob, store: Store) -> list[Event]:
    return list(engine.run(job, store.pending(), threading.Event()))


@ray_is_slow
def test_a_job_that_asks_for_a_profile_is_told_of_every_stage(engine: Engine, make_job: MakeJob) -> None:
    job = make_job(label={**small(), "profile": True})
    total = Profile()
    for event in drive(engine, job, prepare(job)):
        if isinstance(event, Committed):
            assert event.profile is not None
            total.add(event.profile)
    assert set(total.working) == set(STAGES) - {"receive"}


def shards(store: Store) -> dict[str, str | None]:
    return {commit.unit: commit.shard_sha256 for commit in store.commits()}


def test_all_units_are_labelled_with_the_bytes_of_a_bare_labeller(
    engine: Engine, make_job: MakeJob, whole: Whole
) -> None:
    bare = make_job(store="bare")
    expected, labeller = prepare(bare), Labeller(bare)
    for unit in expected.pending():
        labeller.label(unit)
    job = make_job(label=small())
    store = prepare(job)
    events = drive(engine, job, store)
    assert shards(store) == shards(expected)
    whole(store)
    committed = [event for event in events if isinstance(event, Committed)]
    assert {event.commit.unit for event in committed} == {unit.id for unit in store.planned()}
    assert len(committed) == store.planned_count()
    (started,) = (event for event in events if isinstance(event, Started))
    assert started.pid > 0
    assert {event.replica for event in committed} == {started.replica}
    assert drive(engine, job, store) == [], "nothing is labelled twice"


@ray_is_slow
def test_a_drained_job_finishes_what_is_in_flight_and_goes_on_later(
    engine: Engine, make_job: MakeJob, whole: Whole
) -> None:
    job = make_job(label=small(), teacher={"seconds_per_view": 0.01})
    store, stop = prepare(job), threading.Event()
    handed_out: list[str] = []

    def units() -> Iterator[Unit]:
        for unit in store.pending():
            handed_out.append(unit.id)
            yield unit

    count = 0
    for event in engine.run(job, units(), stop):
        if isinstance(event, Committed):
            count += 1
            stop.set()
    assert 1 <= count < store.planned_count()
    # Two in flight and one looked at: a million units never sit in memory.
    assert len(handed_out) <= 4
    assert len(store.committed()) == count
    drive(engine, job, store)
    whole(store)


@ray_is_slow
def test_closing_the_events_abandons_what_is_in_flight(
    engine: Engine, make_job: MakeJob, whole: Whole
) -> None:
    job = make_job(label=small(), teacher={"seconds_per_view": 0.05})
    store = prepare(job)
    events = engine.run(job, store.pending(), threading.Event())
    for event in events:
        if isinstance(event, Started):
            break
    events.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("decant")]
    assert len(store.committed()) < store.planned_count()
    drive(engine, make_job(label=small()), store)
    whole(store)


@ray_is_slow
def test_a_poisonous_record_is_quarantined_and_the_rest_labelled(
    engine: Engine, make_job: MakeJob, whole: Whole, texts: dict[str, str]
) -> None:
    job = make_job(texts | POISON, teacher={"raise_on": 90}, label=small() | {"max_quarantined": 0.05})
    store = prepare(job)
    drive(engine, job, store)
    whole(store)
    (item,) = (item for commit in store.commits() for item in store.quarantined(commit))
    assert (item.key, item.code) == ("0005.txt", "teacher_failed")


@ray_is_slow
def test_too_many_failures_end_the_job_with_their_commonest_reason(engine: Engine, make_job: MakeJob) -> None:
    texts: dict[str, str | bytes] = {f"{i:03}.txt": "w1 w2 w3" for i in range(300)}
    texts |= {f"{i:03}.txt": b"\xff\xff" for i in range(0, 300, 10)}
    job = make_job(texts, label=small(), unit_bytes=100)
    store = prepare(job)
    with pytest.raises(TooManyQuarantined, match=r"max_quarantined.*undecodable.*not UTF-8"):
        drive(engine, job, store)
    assert 0 < len(store.committed()) < store.planned_count()
    assert store.verify().problems == ()


@ray_is_slow
def test_few_records_are_judged_at_the_end(
    engine: Engine, make_job: MakeJob, whole: Whole, texts: dict[str, str]
) -> None:
    job = make_job(texts | POISON, teacher={"raise_on": 90}, label=small())
    store = prepare(job)
    with pytest.raises(TooManyQuarantined, match=r"1 failures in 40 records.*0005\.txt"):
        drive(engine, job, store)
    whole(store)


@ray_is_slow
def test_a_file_that_changed_costs_its_unit_and_no_other(
    engine: Engine, make_job: MakeJob, tmp_path: Path
) -> None:
    job = make_job(label=small())
    store = prepare(job)
    (tmp_path / "corpus" / "0003.txt").write_text("changed")
    events: list[Event] = []
    with pytest.raises(LabellingFailed, match=r"1 units .*0003\.txt"):
        events.extend(engine.run(job, store.pending(), threading.Event()))
    verification = store.verify()
    assert verification.problems == ()
    assert verification.missing_units == 1


@ray_is_slow
def test_a_failed_unit_is_told_with_its_reason(engine: Engine, make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(label=small())
    store = prepare(job)
    (tmp_path / "corpus" / "0003.txt").unlink()
    events: list[Event] = []
    with pytest.raises(LabellingFailed):
        events.extend(engine.run(job, store.pending(), threading.Event()))
    failed = [event for event in events if isinstance(event, Failed)]
    (event,) = failed
    assert event.given_up
    assert event.attempts == 1
    assert "0003.txt" in event.reason


@ray_is_slow
def test_a_model_that_is_not_the_stores_ends_the_job_at_once(engine: Engine, make_job: MakeJob) -> None:
    store = prepare(make_job())
    with pytest.raises(SpecMismatch, match="teacher"):
        drive(engine, make_job(teacher={"seed": 7}, label=small()), store)
    assert store.committed() == set()


@ray_is_slow
def test_storage_that_fails_ends_the_job_after_all_attempts(
    engine: Engine, make_job: MakeJob, tmp_path: Path
) -> None:
    job = make_job(label=small())
    store = prepare(job)
    (tmp_path / "store" / "shards").write_text("in the way")
    events: list[Event] = []
    with pytest.raises(StorageError, match="store"):
        events.extend(engine.run(job, store.pending(), threading.Event()))
    failed = [event for event in events if isinstance(event, Failed)]
    assert failed
    assert not any(event.given_up for event in failed)


def test_no_units_cost_nothing(engine: Engine, make_job: MakeJob) -> None:
    job = make_job(label=small())
    prepare(job)
    assert list(engine.run(job, [], threading.Event())) == []


# What only a pool can promise.


@pytest.mark.slow
def test_of_a_unit_that_kills_every_replica_the_record_that_does_it_is_quarantined_and_the_rest_labelled(
    on_ray: Engine, make_job: MakeJob, whole: Whole, texts: dict[str, str]
) -> None:
    job = make_job(
        texts | POISON, teacher={"exit_on": 90}, label=small() | {"attempts": 2, "max_quarantined": 0.05}
    )
    store = prepare(job)
    events = drive(on_ray, job, store)
    whole(store)
    (item,) = (item for commit in store.commits() for item in store.quarantined(commit))
    assert (item.key, item.view, item.code) == ("0005.txt", None, "killed")
    assert item.reason.startswith("killed the replica: ")
    assert sum(commit.records for commit in store.commits()) == len(texts)
    lost = [event for event in events if isinstance(event, ReplicaLost)]
    assert 3 <= len(lost) <= 7
    assert not any(isinstance(event, Failed) and event.given_up for event in events)


@pytest.mark.slow
def test_a_unit_that_kills_its_replica_once_is_labelled_by_the_next(
    on_ray: Engine, make_job: MakeJob, whole: Whole, texts: dict[str, str], tmp_path: Path
) -> None:
    teacher = {"exit_on": 90, "exit_marker": str(tmp_path / "marker")}
    job = make_job(texts | POISON, teacher=teacher, label=small() | {"attempts": 1})
    store = prepare(job)
    events = drive(on_ray, job, store)
    whole(store)
    assert sum(isinstance(event, ReplicaLost) for event in events) == 1


@pytest.mark.slow
def test_a_replica_killed_from_outside_loses_nothing(on_ray: Engine, make_job: MakeJob, whole: Whole) -> None:
    job = make_job(label=small(max=2, min=2), teacher={"seconds_per_view": 0.02})
    store = prepare(job)
    events: list[Event] = []
    pids: dict[int, int] = {}
    killed: int | None = None
    for event in on_ray.run(job, store.pending(), threading.Event()):
        events.append(event)
        if isinstance(event, Started):
            pids[event.replica] = event.pid
        elif isinstance(event, Committed) and killed is None:  # its next unit is in flight
            killed = pids[event.replica]
            os.kill(killed, signal.SIGKILL)
    whole(store)
    (lost,) = (event for event in events if isinstance(event, ReplicaLost))
    assert lost.pid == killed
    assert sum(isinstance(event, ReplicaPending) for event in events) == 3, "it is replaced"


@pytest.mark.slow
def test_a_pool_larger_than_the_cluster_works_with_what_it_gets(
    on_ray: Engine, make_job: MakeJob, whole: Whole
) -> None:
    job = make_job(label=small(cpus=2.0, max=5))
    store = prepare(job)
    events = drive(on_ray, job, store)
    whole(store)
    assert 1 <= sum(isinstance(event, Started) for event in events) <= 2


@pytest.mark.slow
def test_too_small_a_cluster_is_said_in_one_sentence(on_ray: Engine, make_job: MakeJob) -> None:
    job = make_job(label=small(gpus=1.0, min=3, max=3, start_timeout_seconds=6))
    store = prepare(job)
    job = job.model_copy(
        update={"teacher": job.teacher.model_copy(update={"seconds_per_view": 0.3})}  # outlasts the wait
    )
    with pytest.raises(LabellingFailed, match=r"of at least 3 replicas started within 6 s.*2 GPUs"):
        drive(on_ray, job, store)


def test_more_replicas_at_least_than_at_most_is_a_mistake(on_ray: Engine, make_job: MakeJob) -> None:
    job = make_job(label=small(min=3, max=2))
    with pytest.raises(ConfigError, match=r"min \(3\)"):
        drive(on_ray, job, prepare(job))


@pytest.mark.slow
def test_a_model_that_kills_whoever_loads_it_ends_the_job(on_ray: Engine, make_job: MakeJob) -> None:
    job = make_job(label=small() | {"attempts": 2})
    store = prepare(job)
    deadly = make_job(
        label=small() | {"attempts": 2},
        teacher={
            "kind": "torch",
            "factory": "os:_exit",
            "arguments": {"status": 1},
            "heads": {"logits": 128},
        },
    )
    with pytest.raises(TeacherError, match="2 replicas in a row died"):
        drive(on_ray, deadly, store)


@pytest.mark.slow
def test_the_engine_leaves_a_ray_that_it_did_not_start(on_ray: Engine, make_job: MakeJob) -> None:
    import ray

    job = make_job(label=small())
    drive(on_ray, job, prepare(job))
    assert ray.is_initialized()


CONNECT = """
import sys, threading
from pipeline.engine.ray import RayEngine
from pipeline.job import LabelJob
from pipeline.targets.store import Store
job = LabelJob.model_validate_json(open(sys.argv[1]).read())
for event in RayEngine().run(job, Store.open(job.store.url).pending(), threading.Event()):
    pass
"""


@pytest.mark.slow
def test_a_cluster_at_an_address_is_used_and_left_running(
    on_ray: Engine, make_job: MakeJob, whole: Whole, tmp_path: Path
) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    job = make_job(label=small() | {"engine": "ray", "address": address})
    store = prepare(job)
    path = tmp_path / "job.json"
    path.write_text(job.model_dump_json())
    subprocess.run([sys.executable, "-c", CONNECT, str(path)], check=True)
    whole(store)
    assert ray.get(ray.remote(lambda: 7).remote()) == 7


@pytest.mark.slow
def test_no_cluster_at_an_address_is_said_in_one_sentence(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(label=small() | {"engine": "ray", "address": "127.0.0.1:9"})
    prepare(job)
    path = tmp_path / "job.json"
    path.write_text(job.model_dump_json())
    ended = subprocess.run([sys.executable, "-c", CONNECT, str(path)], capture_output=True, text=True)
    assert ended.returncode != 0
    assert "ConfigError: label.address: no Ray cluster answers at '127.0.0.1:9'" in ended.stderr
