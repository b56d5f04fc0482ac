"""The text leg's labelling: on Ray, through the kill of a replica that the demo does itself.

It knows engines by their events, and nothing of what the teacher is.
"""

from __future__ import annotations

import math
import os
import platform
import shutil
import signal
import threading
import time
from contextlib import closing
from pathlib import Path

from jobs.demo.results import CommittedUnit, Kill
from jobs.demo.settings import TextSettings
from jobs.demo.stages import Stages
from jobs.progress import Display, LabelView
from jobs.terminal import count, duration
from pipeline.engine.base import Committed, Engine, ReplicaLost, Started
from pipeline.job import LabelJob
from pipeline.prepare import prepare
from pipeline.targets.errors import SpecMismatch
from pipeline.targets.store import Store


def label(job: LabelJob, stages: Stages, engine: Engine, settings: TextSettings) -> tuple[Store, Timeline]:
    """The labelled store, and what happened when. Raises what preparing and labelling raise."""
    with stages.stage(
        f"Label the rest on Ray with {settings.replicas} replicas",
        "Each replica holds the teacher once and streams units: read, tokenize, forward, encode, write. A "
        "unit counts when its commit record is published, which succeeds exactly once. "
        + (
            f"After {settings.kill_after:.0%} of the units the demo kills one of its own replicas with "
            "SIGKILL, as an outage would."
            if settings.kill
            else ""
        ),
    ):
        store = _opened(job, stages)
        planned, before = store.planned_count(), len(store.committed())
        view = LabelView(f"labelling into {job.store.url}", planned, before, "tokens")
        timeline = Timeline(planned - before, settings)
        with (
            Display(view, stages.console),
            closing(engine.run(job, store.pending(), threading.Event())) as stream,  # type: ignore[type-var]
        ):
            for event in stream:
                view.on(event)
                if (victim := timeline.on(event)) is not None:
                    view.say(f"kill -9 {victim.pid}: replica {victim.replica}, on purpose")
                    os.kill(victim.pid, signal.SIGKILL)
        store.compact()
        targets, seconds = view.totals.targets, timeline.seconds
        stages.say(
            f"{count(targets)} tokens in {duration(seconds)}: {targets / max(seconds, 1e-9):,.0f} tokens/s"
        )
    return store, timeline


def _opened(job: LabelJob, stages: Stages) -> Store:
    """The demo's store: the unfinished one of a run that was interrupted, or a fresh one."""
    folder = Path(job.store.url)
    if folder.exists():
        try:
            store = prepare(job)
        except SpecMismatch:
            stages.say("the store of an earlier run was labelled by another teacher: it makes room")
        else:
            if (done := len(store.committed())) < store.planned_count():
                if done:
                    stages.say(f"an earlier run left {done} of {store.planned_count()} units done: going on")
                return store
            stages.say("the finished store of an earlier run makes room for a new one")
        shutil.rmtree(folder)
    return prepare(job)


class Timeline:
    """What happened when: commits, and the kill. It also says when to kill whom."""

    def __init__(self, pending: int, settings: TextSettings) -> None:
        self.units: list[CommittedUnit] = []
        self.kill: Kill | None = None
        self._alive: dict[int, Started] = {}
        self._before_kill: set[int] = set()
        # With too few units the kill would find nobody at work.
        armed = settings.kill and pending >= 4 * settings.replicas
        self._kill_after = math.ceil(settings.kill_after * pending) if armed else None
        self._started, self._zero = False, time.time()

    @property
    def seconds(self) -> float:
        """Up to the last commit."""
        return self.units[-1].finished if self.units else 0.0

    def on(self, event: object) -> Started | None:
        """Takes one event of the engine; a replica to kill now, or None."""
        match event:
            case Started():
                if not self._started:
                    self._started, self._zero = True, time.time()
                # Only a process of this machine can be killed by its number, and never this one.
                if event.node == platform.node() and event.pid != os.getpid():
                    self._alive[event.replica] = event
            case ReplicaLost():
                self._alive.pop(event.replica, None)
            case Committed():
                return self._committed(event)
        return None

    def _committed(self, event: Committed) -> Started | None:
        commit, finished = event.commit, max(0.0, event.commit.finished - self._zero)
        self.units.append(
            CommittedUnit(
                unit=commit.unit,
                replica=str(event.replica),
                started=max(0.0, commit.started - self._zero),
                finished=finished,
                records=commit.records,
                targets=commit.targets,
                shard_bytes=commit.shard_bytes,
            )
        )
        if self.kill is None:
            if self._kill_after is None or len(self.units) < self._kill_after or not self._alive:
                return None
            # The other one than has just finished: it is surely at work.
            victim = self._alive[max(self._alive, key=lambda replica: (replica != event.replica, replica))]
            self._before_kill = set(self._alive)
            at = time.time() - self._zero
            self.kill = Kill(at=at, replica=str(victim.replica), committed=len(self.units), recovered=None)
            return victim
        if self.kill.recovered is None and event.replica not in self._before_kill:
            self.kill = self.kill.model_copy(update={"recovered": finished})
        return None
