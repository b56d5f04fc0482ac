"""Scale without the hardware: many replicas that sleep, and a store of a million units.

    python -m benchmarks.scale --units 1000000 --replicas 64 --scheduled 20000

Three parts, each step in a process of its own, whose peak of resident memory is the kernel's (VmHWM):

- store: a plan of a million units is written; half of them are committed, as a record each; the job is
  opened again for what is pending; the records are folded; the rest comes and is folded in too; the whole
  is opened, streamed, watched, and read by a student.
- engine: the Ray engine's own loop, ledger and events, with replicas that sleep instead of labelling. The
  sleep of a unit varies by a quarter, so that replicas do not run in step.
- the same with replicas that do nothing, for the most that the engine hands out; and with as many units in
  flight as a thousand replicas have.

Nothing here goes over a network: what requests to an object store add is counted in docs/scaling.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import random
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS, record
from pipeline.targets.codecs import Threshold
from pipeline.targets.commit import Commit, commit_name, shard_name
from pipeline.targets.spec import Head, Input, Spec
from pipeline.targets.store import Store
from pipeline.targets.unit import Slice, Unit

FOLDED = 50_000
"""Of the second half, how many records are written and folded at a time, as a running job does."""


def spec() -> Spec:
    """Of a store of token targets."""
    return Spec(
        inputs=(Input("tokens", "<u4", (None,)),),
        heads=(Head("logits", 150_000, "next_token", Threshold(0.02)),),
        teacher={"kind": "sleeper", "fingerprint": "0" * 32},
        views={"kind": "token_windows", "fingerprint": "0" * 32},
    )


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


def put(store: Store, commit: Commit) -> None:
    """A commit record, without the disk's patience: that a publication is synced is not measured here."""
    path = Path(store.url, commit_name(commit.unit))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(commit.to_json())


# The steps on a store. Each returns figures of its own beside the seconds and the peak.


def plan(url: str, count: int) -> dict[str, Any]:
    """Writes the plan."""
    store = Store.create(url, spec())
    planned = store.write_plan(units(count), {"kind": "parquet"}, store.generation())
    size = sum(entry.size for entry in store.storage.list("plan/"))
    return {"units": planned, "plan_bytes": size}


def commit_half(url: str, count: int) -> dict[str, Any]:
    """Commits every other unit, as a record each: a job that was killed before it ever compacted."""
    store, fingerprint = Store.open(url), spec().fingerprint
    for number, unit in enumerate(units(count)):
        if number % 2 == 0:
            put(store, commit_of(unit.id, fingerprint))
    return {"records": count // 2}


def resume(url: str, count: int) -> dict[str, Any]:
    """Until the first pending unit is there, and until the last."""
    begun = time.perf_counter()
    pending = Store.open(url).pending()
    next(pending)
    first = time.perf_counter() - begun
    return {"first_seconds": round(first, 2), "pending": 1 + sum(1 for _ in pending)}


def compact(url: str, count: int) -> dict[str, Any]:
    """Folds all records."""
    store = Store.open(url)
    folded = store.compact()
    return {"units": folded, "manifest_bytes": max(entry.size for entry in store.storage.list("manifest/"))}


def commit_rest(url: str, count: int) -> dict[str, Any]:
    """Commits the others, and folds them as they come."""
    store, fingerprint = Store.open(url), spec().fingerprint
    spent, worst, folds = 0.0, 0.0, 0
    for number, unit in enumerate(units(count)):
        if number % 2:
            put(store, commit_of(unit.id, fingerprint))
        if (number + 1) % (2 * FOLDED) == 0 or number == count - 1:
            begun = time.perf_counter()
            store.compact()
            seconds = time.perf_counter() - begun
            spent, worst, folds = spent + seconds, max(worst, seconds), folds + 1
            store.gc(0)
    return {"folds": folds, "fold_seconds": round(spent, 2), "longest_fold_seconds": round(worst, 2)}


def open_all(url: str, count: int) -> dict[str, Any]:
    """Opens the store and knows which units it has."""
    store = Store.open(url)
    return {"shards": len(store.manifest())}


def stream_all(url: str, count: int) -> dict[str, Any]:
    """Reads every commit record of it, as objects, one after the other."""
    return {"commits": sum(1 for _ in Store.open(url).commits())}


def watch_all(url: str, count: int) -> dict[str, Any]:
    """What `decant watch` does first, and what each look costs from then on."""
    from jobs.watching import Watched

    watched = Watched(Store.open(url), 300)
    watched.look(all_of_it=True)
    begun = time.perf_counter()
    watched.look()
    return {"committed": watched.committed, "next_look_seconds": round(time.perf_counter() - begun, 4)}


def read_all(url: str, count: int) -> dict[str, Any]:
    """A student's reader, until it knows how many rows there are."""
    from student.data import TargetReader  # and torch, whose import is not the store's

    before, begun = peak_bytes(), time.perf_counter()
    rows = TargetReader(url, batch_rows=64, seed=0).rows
    seconds, grown = time.perf_counter() - begun, peak_bytes() - before
    return {"rows": rows, "opening_seconds": round(seconds, 2), "opening_mb": grown // 10**6}


STEPS: tuple[Callable[[str, int], dict[str, Any]], ...] = (
    plan,
    commit_half,
    resume,
    compact,
    commit_rest,
    open_all,
    stream_all,
    watch_all,
    read_all,
)


def peak_bytes() -> int:
    """The most resident memory that this process has had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def timed(step: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """A step's figures, its seconds by the clock and of this process's CPU, and its process's peak."""
    before, begun, computed = peak_bytes(), time.perf_counter(), time.process_time()
    figures = step(*arguments)
    return {
        **figures,
        "seconds": round(time.perf_counter() - begun, 2),
        "cpu_seconds": round(time.process_time() - computed, 2),
        "peak_mb": peak_bytes() // 10**6,
        "idle_mb": before // 10**6,
    }


def apart(step: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """`timed` in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        figures = pool.submit(timed, step, *arguments).result()
    print(f"{step.__name__}: {json.dumps(figures)}", flush=True)
    return figures


# The engine


class SleepingLabeller:
    """In the place of `pipeline.label.Labeller`: it sleeps, and says that it has committed."""

    recorder = None

    def __init__(self) -> None:
        self._seconds = float(os.environ["DECANT_SLEEP_SECONDS"])

    def label(self, unit: Unit, *_: object) -> Commit:
        """The record of a unit that took its time."""
        name = unit.id
        if self._seconds:
            time.sleep(self._seconds * random.Random(name).uniform(0.75, 1.25))
        return commit_of(name, "0" * 32)


def schedule(count: int, replicas: int, seconds: float, in_flight: int = 2) -> dict[str, Any]:
    """Drives the engine over the units: rate, first unit, share of sleepers that slept, fairness, tail.

    in_flight: units of a replica at a time. A thousand replicas with two units are to the driver's loop what
    ten with two hundred are.
    """
    os.environ["DECANT_SLEEP_SECONDS"] = str(seconds)
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # loopback; read when Ray is imported
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray import cloudpickle

    import benchmarks.scale as here  # a replica's process cannot import this one's main module
    import pipeline.engine.ray as engine
    from pipeline.engine.base import Committed, Started
    from pipeline.job import LabelJob

    class Sleeper(engine.Replica):
        def start(self) -> tuple[int, str]:
            self._labeller = here.SleepingLabeller()  # type: ignore[assignment]
            return os.getpid(), platform.node()

    cloudpickle.register_pickle_by_value(here)
    engine.Replica = Sleeper  # type: ignore[misc]
    job = LabelJob.model_validate(
        {
            "corpus": {"kind": "text", "urls": ["unused"]},
            "views": {"kind": "token_windows", "tokenizer": "unused", "length": 2},
            "teacher": {"kind": "fake", "size": 2},
            "store": {"url": "unused", "heads": {"logits": {"kind": "threshold"}}},
            "label": {
                "engine": "ray",
                "replicas": {
                    "min": replicas,
                    "max": replicas,
                    "cpus": 0.01,
                    "units_in_flight": in_flight,
                    "start_timeout_seconds": 3600,
                },
            },
        }
    )
    asked = time.perf_counter()
    started: list[float] = []
    committed: list[tuple[float, int]] = []
    for event in engine.RayEngine().run(job, units(count), threading.Event()):
        now = time.perf_counter()
        if isinstance(event, Started):
            started.append(now)
        elif isinstance(event, Committed):
            committed.append((now, event.replica))
    # Steady: from the last start on, or for the second half if all went by while some still started, and
    # without the tail in which there is not enough for all.
    slots = replicas * in_flight
    since = min(started[-1], committed[len(committed) // 2][0])
    steady = [at for at, _ in committed[:-slots] if at >= since]
    shares = list(Counter(replica for at, replica in committed if at >= since).values())
    rate = (len(steady) - 1) / (steady[-1] - steady[0])
    figures: dict[str, Any] = {
        "units": len(committed),
        "replicas": replicas,
        "units_in_flight": in_flight,
        "sleep_seconds": seconds,
        "units_per_second": round(rate, 1),
        "first_replica_seconds": round(started[0] - asked, 2),
        "first_unit_seconds": round(committed[0][0] - asked, 2),
        "last_replica_seconds": round(started[-1] - asked, 2),
        "units_of_a_replica": {
            "least": min(shares),
            "median": statistics.median(shares),
            "most": max(shares),
        },
        "tail_seconds": round(committed[-1][0] - committed[-slots][0], 3),
    }
    if seconds:
        figures["of_ideal"] = round(rate * seconds / slots, 3)
    return figures


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--units", type=int, default=1_000_000, help="of the plan")
    parser.add_argument("--replicas", type=int, default=64, help="that sleep")
    parser.add_argument("--scheduled", type=int, default=20_000, help="units that they sleep through")
    parser.add_argument("--seconds", type=float, default=1.0, help="that a unit sleeps on average")
    parser.add_argument("--threads", type=int, default=1, help="ignored: nothing computes")
    parser.add_argument("--only", choices=("store", "engine"), help="one part; the other's figures stay")
    parser.add_argument("--folder", type=Path, help="where the store is made (default: a temporary folder)")
    arguments = parser.parse_args()
    figures: dict[str, Mapping[str, Any]] = {}
    earlier = RESULTS / "scale.json"
    if arguments.only is not None and earlier.exists():
        figures = json.loads(earlier.read_text())["figures"]
    if arguments.only != "engine":
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            for step in STEPS:
                figures[step.__name__] = apart(step, str(Path(folder, "store")), arguments.units)
    if arguments.only != "store":
        sizes = (arguments.scheduled, arguments.replicas)
        figures["sleeping"] = apart(schedule, *sizes, arguments.seconds)
        figures["idle"] = apart(schedule, 2 * arguments.scheduled, arguments.replicas, 0.0)
        figures["thousand"] = apart(schedule, arguments.scheduled, 10, 0.0, 200)
    record("scale", figures)


if __name__ == "__main__":
    main()
