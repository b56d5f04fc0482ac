"""The Ray engine: a pool of actors, each with the model loaded once, and a dispatch loop in the driver.

Plain actors, and no retry or restart by Ray itself: that a unit is committed exactly once is the store's
affair, what a lost replica means for its units is the ledger's. Here is only who runs what, where.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.engine.base import (
    Attempt,
    Committed,
    Event,
    Ledger,
    Preempted,
    ReplicaLost,
    ReplicaPending,
    Started,
    sentence,
)
from pipeline.engine.connection import connect
from pipeline.engine.feeding import Preprocessors, RemoteFeed, cause_of_death
from pipeline.engine.replica import Labelling, Replica
from pipeline.targets.errors import ConfigError, DecantError, LabellingFailed, TeacherError
from pipeline.targets.unit import Unit

if TYPE_CHECKING:
    from pipeline.job import LabelJob

POLL_SECONDS = 0.5
"""How often the loop looks at the clock and at `stop` while no replica has news."""


class RayEngine:
    """Labels on actors: of a Ray cluster, of one started here, or of the one this process is connected to."""

    def run(
        self, job: LabelJob, units: Iterable[Unit], stop: threading.Event, retry: Sequence[str] = ()
    ) -> Generator[Event, None, None]:
        """See `Engine.run`. Raises ConfigError when this machine cannot hold the pool, LabellingFailed when
        fewer than `min` replicas started in time, TeacherError when they die while they load the model.
        """
        wanted = job.label.replicas
        if wanted.min > wanted.max:
            raise ConfigError(f"label.replicas: min ({wanted.min}) is more than max ({wanted.max})")
        ledger = Ledger(job, units)
        if ledger.empty:
            return
        preprocessors = Preprocessors(job)
        ours = connect(job.label, preprocessors.object_bytes)
        pool = _Pool(job, ledger, stop, preprocessors, retry)
        try:
            yield from pool.run()
        finally:
            pool.close()
            preprocessors.close()
            if ours:
                import ray

                ray.shutdown()
        if not stop.is_set():
            ledger.finish()


@dataclass(frozen=True)
class _Flight:
    """A unit that a replica has. began: when it got it; feed: who renders it, if not the replica."""

    attempt: Attempt
    began: float
    feed: RemoteFeed | None


@dataclass(eq=False)
class _Member:
    """A replica as the driver sees it. pid: None until it has started."""

    number: int
    actor: Any
    pid: int | None = None
    alone: bool = False
    leaving: bool = False
    in_flight: dict[Any, _Flight] = field(default_factory=dict)


class _Pool:
    """The replicas of a run, and the loop that keeps them busy."""

    def __init__(
        self,
        job: LabelJob,
        ledger: Ledger,
        stop: threading.Event,
        preprocessors: Preprocessors,
        retry: Sequence[str] = (),
    ) -> None:
        self._job, self._ledger, self._stop, self._retry = job, ledger, stop, tuple(retry)
        self._preprocessors = preprocessors
        self._wanted = job.label.replicas
        self._members: list[_Member] = []
        self._refs: dict[Any, _Member] = {}
        """What is awaited: each member's start, then its units."""
        self._asked = self._failed_starts = 0

    def run(self) -> Generator[Event, None, None]:
        """Until all is done, given up, or drained."""
        import ray

        for _ in range(self._wanted.max):
            yield self._ask()
        if not self._retry:
            self._preprocessors.begin()
        deadline: float | None = None
        while True:
            self._hand_out()
            busy = any(member.in_flight for member in self._members)
            if not busy and (self._stop.is_set() or self._ledger.empty):
                return
            if sum(member.pid is not None for member in self._members) >= self._wanted.min:
                deadline = None
            elif deadline is None:
                deadline = time.monotonic() + self._wanted.start_timeout_seconds
            elif time.monotonic() > deadline:
                raise LabellingFailed(self._too_few())
            beside = self._preprocessors.awaited()
            ready, _ = ray.wait([*self._refs, *beside], num_returns=1, timeout=POLL_SECONDS)
            for ref in ready:
                if ref in self._refs:
                    yield from self._settle(ref)
                else:
                    yield from self._preprocessors.settle(ref, self._more())
            yield from self._retire()

    def _more(self) -> bool:
        """Whether there is anything left to hand out."""
        return not self._stop.is_set() and not self._ledger.empty

    def close(self) -> None:
        """End all replicas; what they have in flight is abandoned."""
        for member in self._members:
            _kill(member)
        self._members.clear()

    def _ask(self) -> ReplicaPending:
        """Ask for a replica. Ray places it when there is room; until then a cluster's autoscaler sees it."""
        import ray

        threads = max(1, int(self._wanted.cpus))
        actor = (
            ray.remote(Replica)
            .options(
                num_cpus=self._wanted.cpus,
                num_gpus=self._wanted.gpus,
                max_restarts=0,
                max_task_retries=0,
                max_concurrency=self._wanted.units_in_flight,
            )
            .remote(self._job.model_dump_json(), threads, self._wanted.grace_seconds)
        )
        member = _Member(self._asked, actor)
        self._asked += 1
        self._members.append(member)
        self._refs[actor.start.remote()] = member
        return ReplicaPending(member.number)

    def _hand_out(self) -> None:
        """Fill the replicas, the idlest first, so that none has two units while another has none."""
        if self._stop.is_set():
            return
        free = [m for m in self._members if m.pid is not None and not m.alone and not m.leaving]
        free.sort(key=lambda member: len(member.in_flight))
        # As many replicas as there are suspects take nothing more until they are empty.
        kept = self._ledger.suspects
        for member in free[:kept]:
            if not member.in_flight and (suspect := self._ledger.next_suspect()) is not None:
                member.alone = True
                self._submit(member, suspect)
        for held in range(self._wanted.units_in_flight):
            for member in free[kept:]:
                if len(member.in_flight) == held:
                    attempt = self._ledger.next()
                    if attempt is None:
                        return
                    self._submit(member, attempt)

    def _submit(self, member: _Member, attempt: Attempt) -> None:
        # A unit that has failed is rendered by its replica, where what kills is found and kills nobody else.
        fresh = not attempt.failures and attempt.search is None and not self._retry
        feed = self._preprocessors.lend(member.number) if fresh else None
        if attempt.trial is None:
            ref = member.actor.label.remote(attempt.unit, attempt.skip, self._retry, feed)
        else:
            ref = member.actor.rehearse.remote(attempt.unit, attempt.trial, attempt.skip)
        member.in_flight[ref] = _Flight(attempt, time.monotonic(), feed)
        self._refs[ref] = member

    def _settle(self, ref: Any) -> Iterator[Event]:
        """One replica has news: it started, or a unit ended."""
        import ray

        member = self._refs.pop(ref)
        try:
            outcome = ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            if member.pid is not None:
                yield from self._failed(member, ref, error.cause)
            elif isinstance(error.cause, DecantError):
                raise error.cause from None
            else:
                yield from self._lost(member, sentence(error.cause))
        except ray.exceptions.RayError as error:
            preempted = getattr(error, "preempted", False)
            if member.pid is not None:
                self._refs[ref] = member
            blame = not preempted and not member.leaving
            yield from self._lost(member, cause_of_death(error), blame)
        else:
            if member.pid is not None:
                yield from self._done(member, ref, outcome)
            else:
                member.pid, node = outcome
                self._failed_starts = 0
                yield Started(member.number, outcome[0], node)

    def _retire(self) -> Iterator[Event]:
        """End the replicas that leave and have no unit any more, and those that have had one for too long."""
        limit = self._job.label.unit_timeout_seconds
        for member in list(self._members):
            if member.leaving and not member.in_flight:
                yield from self._lost(member, "it was told to leave (SIGTERM)", blame=False)
            began = min((flight.began for flight in member.in_flight.values()), default=math.inf)
            if time.monotonic() - began > limit:
                yield from self._lost(
                    member, f"a unit took longer than label.unit_timeout_seconds ({limit:g})"
                )

    def _landed(self, member: _Member, ref: Any) -> _Flight:
        """A unit that a replica has no more."""
        flight = member.in_flight.pop(ref)
        member.alone = False
        self._preprocessors.give_back(flight.feed)
        return flight

    def _done(self, member: _Member, ref: Any, outcome: Labelling | int) -> Iterator[Event]:
        """A unit is committed, or a rehearsal over, of so many records."""
        flight = self._landed(member, ref)
        if isinstance(outcome, int):
            yield from self._ledger.survived(flight.attempt, outcome)
        else:
            seconds = time.monotonic() - flight.began
            yield Committed(outcome.commit, member.number, seconds, outcome.profile)
            self._ledger.committed(outcome.commit)

    def _failed(self, member: _Member, ref: Any, error: Exception) -> Iterator[Event]:
        """A unit raised; the replica lives. After a TeacherError it is replaced all the same."""
        attempt = self._landed(member, ref).attempt
        if isinstance(error, Preempted):
            self._ledger.returned(attempt)
            member.leaving = True
            return
        yield self._ledger.failed(attempt, error)
        if isinstance(error, TeacherError):
            yield from self._lost(member, sentence(error), blame=False)

    def _lost(self, member: _Member, reason: str, blame: bool = True) -> Iterator[Event]:
        """A replica is gone, or no longer to be trusted: its units go back, and another is asked for.

        blame: whether one of its units may have killed it.
        """
        import ray

        _kill(member)
        self._members.remove(member)
        self._preprocessors.forget(member.number)
        yield ReplicaLost(member.number, member.pid, reason)
        victims = []
        for ref, flight in list(member.in_flight.items()):
            del self._refs[ref]
            try:
                outcome = ray.get(ref)
            except ray.exceptions.RayTaskError as error:
                self._landed(member, ref)
                if isinstance(error.cause, Preempted):
                    self._ledger.returned(flight.attempt)
                else:
                    yield self._ledger.failed(flight.attempt, error.cause)
            except ray.exceptions.RayError:
                self._landed(member, ref)
                victims.append(flight.attempt)
            else:
                yield from self._done(member, ref, outcome)
        for attempt in victims:
            if blame:
                yield self._ledger.crashed(attempt, reason, alone=len(victims) == 1)
            else:
                self._ledger.returned(attempt)
        if member.pid is None:
            self._failed_starts += 1
        if self._failed_starts >= self._job.label.attempts:
            if sum(other.pid is not None for other in self._members) < self._wanted.min:
                raise TeacherError(
                    f"{self._failed_starts} replicas in a row died while they loaded the model: {reason}"
                )
        elif self._more():
            yield self._ask()

    def _too_few(self) -> str:
        import ray

        started = sum(member.pid is not None for member in self._members)
        wanted = self._wanted
        has = ray.cluster_resources()
        return (
            f"{started} of at least {wanted.min} replicas started within {wanted.start_timeout_seconds:g} s: "
            f"each of the {wanted.max} that were asked for needs {wanted.cpus:g} CPUs and {wanted.gpus:g} "
            f"GPUs, the cluster has {has.get('CPU', 0):g} CPUs and {has.get('GPU', 0):g} GPUs: lower "
            "label.replicas, free the cluster, or wait longer (start_timeout_seconds)"
        )


def _kill(member: _Member) -> None:
    import ray

    ray.kill(member.actor, no_restart=True)
