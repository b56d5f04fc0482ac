"""The Ray engine's own loop with replicas that sleep: what `benchmarks.scale` measures of it."""

from __future__ import annotations

import os
import platform
import random
import statistics
import sys
import threading
import time
from collections import Counter
from typing import Any

from benchmarks.scale_units import commit_of, units
from pipeline.targets.commit import Commit
from pipeline.targets.unit import Unit


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

    import pipeline.engine.ray as engine
    from pipeline.engine.base import Committed, Started
    from pipeline.job import LabelJob

    class Sleeper(engine.Replica):
        def start(self) -> tuple[int, str]:
            self._labeller = SleepingLabeller()  # type: ignore[assignment]
            return os.getpid(), platform.node()

    for name in (__name__, commit_of.__module__):  # which a replica's process cannot import
        cloudpickle.register_pickle_by_value(sys.modules[name])
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
