"""The Ray engine: a pool of actors, each with the model loaded once, and a dispatch loop in the driver.

Plain actors, and no retry or restart by Ray itself: that a unit is committed exactly once is the store's
affair, what a lost replica means for its units is the ledger's. Here is only who runs what, where.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
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
from pipeline.engine.replica import Labelling, Replica
from pipeline.targets.errors import ConfigError, DecantError, LabellingFailed, TeacherError
from pipeline.targets.unit import Unit

if TYPE_CHECKING:
    from pipeline.job import LabelConfig, LabelJob

POLL_SECONDS = 0.5
"""How often the loop looks at the clock and at `stop` while no replica has news."""

CONNECT_SECONDS = 10.0
"""How long a cluster may take to accept a connection."""

OBJECT_STORE_BYTES = 100_000_000
"""Of a Ray started here. Units and commit records are small; nothing large goes through it."""


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
        ours = _connect(job.label)
        pool = _Pool(job, ledger, stop, retry)
        try:
            yield from pool.run()
        finally:
            pool.close()
            if ours:
                import ray

                ray.shutdown()
        if not stop.is_set():
            ledger.finish()


@dataclass(eq=False)
class _Member:
    """A replica as the driver sees it. pid: None until it has started."""

    number: int
    actor: Any
    pid: int | None = None
    alone: bool = False
    leaving: bool = False
    in_flight: dict[Any, tuple[Attempt, float]] = field(default_factory=dict)


class _Pool:
    """The replicas of a run, and the loop that keeps them busy."""

    def __init__(
        self, job: LabelJob, ledger: Ledger, stop: threading.Event, retry: Sequence[str] = ()
    ) -> None:
        self._job, self._ledger, self._stop, self._retry = job, ledger, stop, tuple(retry)
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
            ready, _ = ray.wait(list(self._refs), num_returns=1, timeout=POLL_SECONDS)
            for ref in ready:
                yield from self._settle(ref)
            yield from self._retire()

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
        if attempt.trial is None:
            ref = member.actor.label.remote(attempt.unit, attempt.skip, self._retry)
        else:
            ref = member.actor.rehearse.remote(attempt.unit, attempt.trial, attempt.skip)
        member.in_flight[ref] = (attempt, time.monotonic())
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
            yield from self._lost(member, _cause_of_death(error), blame)
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
            began = min((began for _, began in member.in_flight.values()), default=math.inf)
            if time.monotonic() - began > limit:
                yield from self._lost(
                    member, f"a unit took longer than label.unit_timeout_seconds ({limit:g})"
                )

    def _done(self, member: _Member, ref: Any, outcome: Labelling | int) -> Iterator[Event]:
        """A unit is committed, or a rehearsal over, of so many records."""
        attempt, began = member.in_flight.pop(ref)
        member.alone = False
        if isinstance(outcome, int):
            yield from self._ledger.survived(attempt, outcome)
        else:
            yield Committed(outcome.commit, member.number, time.monotonic() - began, outcome.profile)
            self._ledger.committed(outcome.commit)

    def _failed(self, member: _Member, ref: Any, error: Exception) -> Iterator[Event]:
        """A unit raised; the replica lives. After a TeacherError it is replaced all the same."""
        attempt, _ = member.in_flight.pop(ref)
        member.alone = False
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
        yield ReplicaLost(member.number, member.pid, reason)
        victims = []
        for ref, (attempt, _) in list(member.in_flight.items()):
            del self._refs[ref]
            try:
                outcome = ray.get(ref)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, Preempted):
                    self._ledger.returned(attempt)
                else:
                    yield self._ledger.failed(attempt, error.cause)
            except ray.exceptions.RayError:
                victims.append(attempt)
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
        elif not self._stop.is_set() and not self._ledger.empty:
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


def _connect(config: LabelConfig) -> bool:
    """Have Ray. True if it was not there before and must be left by `ray.shutdown`."""
    if config.address is None:
        # Read when Ray is imported: its processes listen on the loopback interface only.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray prints it on stdout, whatever log_to_driver says; ReplicaLost tells the same.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "A worker died or was killed")
    import ray

    if ray.is_initialized():
        return False
    # Ray puts its own handler of SIGTERM in place, which ends the driver at once. What a signal means is for
    # whoever runs an engine to say.
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if config.address is not None:
            try:
                _knock(config.address)
                ray.init(config.address, **quiet)
            except (OSError, ValueError, RuntimeError) as error:
                raise ConfigError(
                    f"label.address: no Ray cluster answers at {config.address!r} ({sentence(error)})"
                ) from error
            return True
        wanted = config.replicas
        ray.init(
            "local",
            num_cpus=max(os.cpu_count() or 1, math.ceil(wanted.cpus * wanted.max)),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            **quiet,
        )
        gpus = ray.cluster_resources().get("GPU", 0.0)
        if wanted.gpus * wanted.min > gpus:
            ray.shutdown()
            raise ConfigError(
                f"label.replicas: {wanted.min} replicas with {wanted.gpus:g} GPUs each do not fit on this "
                f"machine, which has {gpus:g}: lower gpus or min, or give the address of a cluster"
            )
        return True
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                if handler is not None:
                    signal.signal(number, handler)


def _knock(address: str) -> None:
    """Raises OSError when nothing listens at host:port; Ray itself would go on trying for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()


def _kill(member: _Member) -> None:
    import ray

    ray.kill(member.actor, no_restart=True)


def _cause_of_death(error: Exception) -> str:
    """Ray's many lines, shortened to the one that says why."""
    text = str(error)
    _, found, detail = text.partition("Worker exit detail: ")
    lines = (detail if found else text).strip().splitlines() or [type(error).__name__]
    return lines[0].partition(". Some common causes")[0][:300]
