"""Replicas hang, leave, come back, nodes vanish, drivers meet: nothing is lost, and nothing there twice."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.engine.base import Committed, Engine, Event, Failed, ReplicaLost, Started
from pipeline.job import LabelJob
from pipeline.prepare import prepare
from pipeline.targets.store import Store
from tests.pipeline.engine.drivers import labelling

pytestmark = pytest.mark.slow

MakeJob = Callable[..., LabelJob]
Whole = Callable[[Store], None]


@pytest.fixture
def on_ray(ray_session: None) -> Engine:
    from pipeline.engine.ray import RayEngine

    return RayEngine()


INLINE_BYTES = 100 * 1024
"""What Ray passes from process to process without its object store."""


def signalled(engine: Engine, job: LabelJob, store: Store, number: signal.Signals) -> list[Event]:
    """The events of a run whose first replica gets a signal when it has committed its first unit."""
    events: list[Event] = []
    pid = None
    for event in engine.run(job, store.pending(), threading.Event()):
        events.append(event)
        if isinstance(event, Started) and pid is None:
            pid = event.pid
        elif isinstance(event, Committed) and pid:  # its next unit is in flight
            os.kill(pid, number)
            pid = 0
    return events


def on_pool(**label: Any) -> dict[str, Any]:
    replicas = {"cpus": 0.5, **label.pop("replicas", {})}
    return {"replicas": replicas, "batching": {"budget": 64, "window": 16}, **label}


def shards(store: Store) -> int:
    return sum(1 for _ in store.storage.list("shards/"))


def test_a_replica_that_hangs_is_killed_and_its_units_are_labelled_elsewhere(
    on_ray: Engine, make_job: MakeJob, whole: Whole
) -> None:
    job = make_job(label=on_pool(unit_timeout_seconds=3.0), teacher={"seconds_per_view": 0.01})
    store = prepare(job)
    events = signalled(on_ray, job, store, signal.SIGSTOP)
    whole(store)
    (lost,) = (event for event in events if isinstance(event, ReplicaLost))
    assert lost.reason == "a unit took longer than label.unit_timeout_seconds (3)"
    assert not any(isinstance(event, Failed) and event.given_up for event in events)


def test_a_replica_that_is_told_to_leave_finishes_its_units_in_its_grace_and_no_unit_is_blamed(
    on_ray: Engine, make_job: MakeJob, whole: Whole
) -> None:
    job = make_job(label=on_pool(), teacher={"seconds_per_view": 0.02})
    store = prepare(job)
    events = signalled(on_ray, job, store, signal.SIGTERM)
    whole(store)
    (lost,) = (event for event in events if isinstance(event, ReplicaLost))
    assert "told to leave" in lost.reason
    assert not any(isinstance(event, Failed) for event in events)
    assert shards(store) == store.planned_count(), "no unit was labelled twice"


def test_a_replica_that_is_told_to_leave_abandons_what_its_grace_does_not_suffice_for(
    on_ray: Engine, make_job: MakeJob, whole: Whole
) -> None:
    job = make_job(label=on_pool(replicas={"grace_seconds": 0.0}), teacher={"seconds_per_view": 0.05})
    store = prepare(job)
    events = signalled(on_ray, job, store, signal.SIGTERM)
    whole(store)
    (lost,) = (event for event in events if isinstance(event, ReplicaLost))
    assert "told to leave" in lost.reason
    assert not any(isinstance(event, Failed) for event in events)


def test_a_zombie_that_comes_back_after_its_units_were_taken_over_changes_nothing(
    make_job: MakeJob, whole: Whole, tmp_path: Path
) -> None:
    job = make_job(teacher={"seconds_per_view": 0.02})
    store = prepare(job)
    with labelling(job, tmp_path) as zombie:
        zombie.send_signal(signal.SIGSTOP)
        before = store.committed()
        with labelling(job, tmp_path) as other:
            assert other.wait() == 0
        whole(store)
        taken_over = {commit.unit: commit.attempt for commit in store.commits()}
        store.compact()
        zombie.send_signal(signal.SIGCONT)
        assert zombie.wait() == 0
    assert len(before) < store.planned_count()
    whole(store)
    assert {commit.unit: commit.attempt for commit in store.commits()} == taken_over
    assert shards(store) > store.planned_count(), "the zombie has labelled a unit of its own"
    store.gc(0.0)
    whole(store)
    assert shards(store) == store.planned_count()


def test_two_drivers_on_one_store_commit_each_unit_once(
    make_job: MakeJob, whole: Whole, tmp_path: Path, s3_bucket_url: tuple[str, dict[str, Any]]
) -> None:
    url, options = s3_bucket_url
    heads = {"logits": {"kind": "threshold"}}
    job = make_job(teacher={"seconds_per_view": 0.01})
    job = job.model_copy(
        update={"store": job.store.model_validate({"url": url, "options": options, "heads": heads})}
    )
    store = prepare(job)
    with labelling(job, tmp_path) as one, labelling(job, tmp_path) as two:
        assert one.wait() == two.wait() == 0
    whole(store)


def test_nothing_large_goes_through_rays_object_store(
    on_ray: Engine, make_job: MakeJob, whole: Whole
) -> None:
    import ray

    # Dense logits: a unit's targets are many times what Ray passes without its object store.
    job = make_job(
        unit_bytes=100_000, label=on_pool(), heads={"logits": {"kind": "dense", "dtype": "float32"}}
    )
    store = prepare(job)
    for event in on_ray.run(job, store.pending(), threading.Event()):
        assert len(pickle.dumps(event)) < INLINE_BYTES
        used = (
            ray.cluster_resources()["object_store_memory"] - ray.available_resources()["object_store_memory"]
        )
        assert used == 0
    whole(store)
    assert max(4 * 128 * commit.targets for commit in store.commits()) > 10 * INLINE_BYTES


NODES = """
import random, sys, threading
from ray.cluster_utils import Cluster
from pipeline.engine.base import Committed, ReplicaLost, Started
from pipeline.engine.ray import RayEngine
from pipeline.job import LabelJob
from pipeline.targets.store import Store

moments = random.Random(int(sys.argv[2]))
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80_000_000})
node = {"num_cpus": 1, "object_store_memory": 80_000_000}
nodes = [cluster.add_node(**node), cluster.add_node(**node)]
job = LabelJob.model_validate_json(open(sys.argv[1]).read())
job = job.model_copy(update={"label": job.label.model_copy(update={"address": cluster.address})})
kills = 2
for event in RayEngine().run(job, Store.open(job.store.url).pending(), threading.Event()):
    print(type(event).__name__, getattr(event, "reason", ""), flush=True)
    if isinstance(event, Committed) and kills and moments.random() < 0.5:
        kills -= 1
        victim = nodes.pop(moments.randrange(len(nodes)))
        cluster.remove_node(victim, allow_graceful=False)
        nodes.append(cluster.add_node(**node))
cluster.shutdown()
print("ended", flush=True)
"""


@pytest.mark.parametrize("seed", [0, 1])
def test_a_node_that_vanishes_costs_its_units_in_flight_and_no_more(
    make_job: MakeJob, whole: Whole, tmp_path: Path, seed: int
) -> None:
    label = on_pool(replicas={"cpus": 1.0, "max": 2}, engine="ray", attempts=10)
    job = make_job(unit_bytes=1000, label=label, teacher={"seconds_per_view": 0.03})
    store = prepare(job)
    path = tmp_path / "job.json"
    path.write_text(job.model_dump_json())
    environment = {**os.environ, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    ended = subprocess.run(
        [sys.executable, "-c", NODES, str(path), str(seed)],
        capture_output=True,
        text=True,
        timeout=250,
        env=environment,
    )
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert lines[-1] == "ended"
    assert any(line.startswith("ReplicaLost") for line in lines)
    whole(store)
