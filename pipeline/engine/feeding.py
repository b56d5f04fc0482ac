"""The preprocessing actors of a run, and how a replica gets a unit's views from one.

A replica pulls: one request is under way while the chunk before is worked on, so that a unit never has more
than two chunks in Ray's object store, and that cannot spill. (A streaming generator of Ray's that is dropped
half-way, as by a replica that dies, goes on to its end, and nobody takes what it yields.) What is lost here
costs time and no unit: the replica goes on by itself.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any

from pipeline.batching import Rendered
from pipeline.engine.base import Event, PreprocessorLost, PreprocessorStarted, sentence
from pipeline.engine.preprocessor import CHUNK_BYTES, Name, Preprocessor
from pipeline.rendering import Chunk, FeedLost
from pipeline.stream import waiting
from pipeline.targets.errors import DecantError, LabellingFailed
from pipeline.targets.unit import Unit
from pipeline.views.base import View

if TYPE_CHECKING:
    from pipeline.job import LabelJob

CHUNKS = 3
"""Of a stream in the object store at most: asked for, being copied, and one that is freed in a moment."""

OTHER_CALLS = 4
"""Threads of an actor beside those of its streams."""


@dataclass(frozen=True)
class RemoteFeed:
    """A `Feed` that a replica gets with a unit. name: of the stream, which is for one unit."""

    actor: Any
    name: Name
    timeout_seconds: float

    def __call__(self, unit: Unit) -> Generator[Chunk, None, None]:
        """See `Feed`. An actor that does not answer in time is killed, which its driver notices."""
        import ray

        over = False
        try:
            asked = self.actor.take.remote(self.name, unit)
            while not over:
                with waiting():
                    chunk: Chunk = ray.get(asked, timeout=self.timeout_seconds)
                over = chunk.last
                del asked
                if not over:
                    asked = self.actor.take.remote(self.name, unit)
                chunk = replace(chunk, rendered=[_own(found) for found in chunk.rendered])
                yield chunk
        except ray.exceptions.RayTaskError as error:
            over = True
            raise error.cause from None
        except ray.exceptions.GetTimeoutError:
            over = True
            ray.kill(self.actor, no_restart=True)
            raise FeedLost(
                "a preprocessing actor took longer than label.preprocess.timeout_seconds "
                f"({self.timeout_seconds:g})"
            ) from None
        except ray.exceptions.RayError as error:
            over = True
            raise FeedLost(f"a preprocessing actor is gone: {cause_of_death(error)}") from None
        finally:
            if not over:
                self.actor.close.remote(self.name)


def _own(found: Rendered) -> Rendered:
    """Arrays as Ray gives them lie in its object store, and what a window holds must not fill that."""
    if not isinstance(found, Sequence):
        return found
    return [
        replace(
            item,
            content=View(
                {name: array.copy() for name, array in item.content.inputs.items()}, item.content.size
            ),
        )
        for item in found
    ]


@dataclass(eq=False)
class _Member:
    """A preprocessing actor as the driver sees it. awaited: its start, then its end; streams: under way."""

    number: int
    actor: Any
    awaited: Any
    pid: int | None = None
    streams: int = 0


class Preprocessors:
    """The pool of them, which the driver's loop asks for feeds, and tells of what Ray tells it."""

    def __init__(self, job: LabelJob) -> None:
        self._job, self._wanted = job, job.label.preprocess
        replicas = job.label.replicas
        units = replicas.max * replicas.units_in_flight
        self._most = math.ceil(units / max(1, self._wanted.actors))
        """Streams of an actor, so that all actors together can feed all units in flight."""
        self.object_bytes = CHUNKS * CHUNK_BYTES * units if self._wanted.actors else 0
        """What all streams together have in the object store."""
        self._members: list[_Member] = []
        self._lent: dict[Name, _Member] = {}
        self._numbers, self._names = count(), count()
        self._failed_starts = 0

    def begin(self) -> None:
        """Ask for all of them."""
        for _ in range(self._wanted.actors):
            self._ask()

    def awaited(self) -> list[Any]:
        """References of Ray that have news for `settle`."""
        return [member.awaited for member in self._members]

    def lend(self, replica: int) -> RemoteFeed | None:
        """A feed for one unit, of the idlest actor; None when all are busy or none has started."""
        free = [m for m in self._members if m.pid is not None and m.streams < self._most]
        if not free:
            return None
        member = min(free, key=lambda member: member.streams)
        name = (replica, next(self._names))
        member.streams += 1
        self._lent[name] = member
        return RemoteFeed(member.actor, name, self._wanted.timeout_seconds)

    def give_back(self, feed: RemoteFeed | None) -> None:
        """Its unit is over, well or not."""
        if feed is not None:
            self._lent.pop(feed.name).streams -= 1

    def forget(self, replica: int) -> None:
        """A replica is gone, and cannot close its streams."""
        for member in self._members:
            member.actor.forget.remote(replica)

    def settle(self, ref: Any, more: bool) -> Iterator[Event]:
        """One has started, or is gone. more: whether there is anything left to do for another.

        Raises what went wrong at the start, LabellingFailed when it kills one actor after the other.
        """
        import ray

        (member,) = (member for member in self._members if member.awaited == ref)
        try:
            member.pid, node = ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, DecantError):
                raise error.cause from None
            yield from self._lost(member, sentence(error.cause), more)
        except ray.exceptions.RayError as error:
            yield from self._lost(member, cause_of_death(error), more)
        else:
            self._failed_starts = 0
            member.awaited = member.actor.live.remote()
            yield PreprocessorStarted(member.number, member.pid, node)

    def close(self) -> None:
        """End all of them."""
        import ray

        for member in self._members:
            ray.kill(member.actor, no_restart=True)
        self._members.clear()

    def _ask(self) -> None:
        import ray

        threads = max(1, math.ceil(self._wanted.cpus / self._most))
        actor = (
            ray.remote(Preprocessor)
            .options(
                num_cpus=self._wanted.cpus,
                num_gpus=0,  # Ray places what needs none on nodes that have none, if it can
                max_restarts=0,
                max_task_retries=0,
                max_concurrency=self._most + OTHER_CALLS,
            )
            .remote(self._job.model_dump_json(), threads)
        )
        self._members.append(_Member(next(self._numbers), actor, actor.start.remote()))

    def _lost(self, member: _Member, reason: str, more: bool) -> Iterator[Event]:
        import ray

        ray.kill(member.actor, no_restart=True)
        self._members.remove(member)
        yield PreprocessorLost(member.number, member.pid, reason)
        if member.pid is None:
            self._failed_starts += 1
        if self._failed_starts >= self._job.label.attempts:
            raise LabellingFailed(
                f"{self._failed_starts} preprocessing actors in a row died while they loaded the views: "
                f"{reason}"
            )
        if more:
            self._ask()


def cause_of_death(error: Exception) -> str:
    """Ray's many lines, shortened to the one that says why."""
    text = str(error)
    _, found, detail = text.partition("Worker exit detail: ")
    lines = (detail if found else text).strip().splitlines() or [type(error).__name__]
    return lines[0].partition(". Some common causes")[0][:300]
