"""A preprocessing actor, in a process of its own: it reads and renders units for replicas elsewhere.

It knows corpus and views of a job, and nothing of Ray, models or targets: whoever makes it an actor calls its
methods. A replica pulls a unit's views chunk by chunk, so no more of them exist than were asked for.
"""

from __future__ import annotations

import json
import os
import platform
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.batching import Rendered
from pipeline.engine.replica import plain_errors
from pipeline.profile import Recorder
from pipeline.rendering import Chunk, pieces, records_of, rendered
from pipeline.stream import prefetch
from pipeline.targets.errors import SpecMismatch
from pipeline.targets.store import Store
from pipeline.targets.unit import Unit

if TYPE_CHECKING:
    from pipeline.job import LabelJob
    from pipeline.views.base import Renderer

CHUNK_BYTES = 4 << 20
"""Inputs of a chunk at most, unless one record has more."""

Name = tuple[int, int]
"""Of a stream: its replica, and which of all streams it is."""


@dataclass
class _Stream:
    """A unit under way. lock: held by whoever takes from it or closes it; given: records so far."""

    groups: Generator[Sequence[Rendered], None, None]
    recorder: Recorder | None
    lock: threading.Lock = field(default_factory=threading.Lock)
    given: int = 0
    closed: bool = False

    def take(self) -> Chunk:
        """The next chunk. Raises what reading and rendering raise."""
        with self.lock:
            if self.closed:  # its end must not look like the unit's
                raise RuntimeError("the stream was closed")
            group = next(self.groups, None)
            spent = self.recorder.take() if self.recorder else None
            chunk = Chunk(group or (), self.given, spent, last=group is None)
            self.given += len(chunk.rendered)
            return chunk

    def close(self) -> None:
        """Takes no more."""
        with self.lock:
            self.closed = True
            self.groups.close()


class Preprocessor:
    """Its constructor loads nothing, so that what goes wrong at the start comes back as itself."""

    def __init__(self, job: str, threads: int) -> None:
        """threads: that render each unit."""
        self._text, self._threads = job, threads
        self._job: LabelJob | None = None
        self._renderer: Renderer | None = None
        self._lock = threading.Lock()
        self._streams: dict[Name, _Stream] = {}
        self._gone: set[int] = set()

    def start(self) -> tuple[int, str]:
        """Load the views; process id and node. Raises SpecMismatch when they are not the store's."""
        from pipeline.job import LabelJob

        with plain_errors():
            self._job = job = LabelJob.model_validate_json(self._text)
            self._renderer = job.views.load()
            stored = Store.open(job.store.url, job.store.options).spec.views
            if json.loads(json.dumps(dict(self._renderer.description))) != dict(stored):
                raise SpecMismatch(
                    f"a preprocessing actor's views, on {platform.node()}, are not those of {job.store.url}: "
                    "give all nodes the same tokenizer and settings"
                )
        return os.getpid(), platform.node()

    def live(self) -> None:
        """Never returns, so that whoever waits for it is told when the process ends."""
        threading.Event().wait()

    def take(self, name: Name, unit: Unit) -> Chunk:
        """The next chunk of a unit, which is opened by the first; after the last one its stream is gone."""
        with self._lock:
            if name[0] in self._gone:
                raise RuntimeError(f"replica {name[0]} was given up")
            stream = self._streams.get(name) or self._open(unit)
            self._streams[name] = stream
        try:
            with plain_errors():
                chunk = stream.take()
        except BaseException:
            self.close(name)
            raise
        if chunk.last:
            self.close(name)
        return chunk

    def close(self, name: Name) -> None:
        """What is left of a stream is not wanted any more."""
        with self._lock:
            stream = self._streams.pop(name, None)
        if stream is not None:
            stream.close()

    def forget(self, replica: int) -> None:
        """A replica is gone: close its streams, and open no other that it had asked for before."""
        with self._lock:
            self._gone.add(replica)
            names = [name for name in self._streams if name[0] == replica]
        for name in names:
            self.close(name)

    def _open(self, unit: Unit) -> _Stream:
        assert self._job is not None
        recorder = Recorder() if self._job.label.profile else None
        depth = self._job.label.batching.prefetch
        return _Stream(prefetch(self._groups(unit, depth, recorder), depth, "views", recorder), recorder)

    def _groups(self, unit: Unit, depth: int, recorder: Recorder | None) -> Iterator[Sequence[Rendered]]:
        assert self._job is not None
        assert self._renderer is not None
        records = records_of(self._job.corpus, unit)
        return pieces(rendered(records, self._renderer, self._threads, depth, recorder), CHUNK_BYTES)
