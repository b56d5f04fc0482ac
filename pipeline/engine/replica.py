"""A replica of the teacher, in a process of its own: it loads a job's model once and labels what it is given.

It knows signals and the job, and nothing of Ray: whoever makes it an actor calls its methods.
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.engine.base import Preempted, sentence
from pipeline.profile import Profile
from pipeline.targets.commit import Commit
from pipeline.targets.errors import DecantError
from pipeline.targets.unit import Unit

if TYPE_CHECKING:
    from pipeline.label import Labeller
    from pipeline.rendering import Feed

LAST_WORDS_SECONDS = 1.0
"""Between the last unit of a replica that leaves and its exit, for the answer to reach the driver."""


@dataclass(frozen=True)
class Labelling:
    """What a replica returns of a unit. profile: of its time since the last one, if the job wants to know."""

    commit: Commit
    profile: Profile | None


class Replica:
    """Its constructor loads nothing, so that what goes wrong at the start comes back as itself.

    SIGTERM asks it to leave, as before a spot machine goes. It takes no unit any more, goes on with those
    that it has for `grace_seconds`, then abandons them, and exits.
    """

    def __init__(self, job: str, threads: int, grace_seconds: float) -> None:
        self._job, self._threads, self._grace = job, threads, grace_seconds
        self._labeller: Labeller | None = None
        self._leaving = threading.Event()
        self._idle = threading.Condition()
        self._in_flight = 0
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=self._leave).start())

    def start(self) -> tuple[int, str]:
        """Load the model; process id and node."""
        import torch

        from pipeline.job import LabelJob
        from pipeline.label import Labeller

        torch.set_num_threads(self._threads)
        with plain_errors():
            self._labeller = Labeller(LabelJob.model_validate_json(self._job))
        return os.getpid(), platform.node()

    def label(
        self, unit: Unit, skip: Mapping[int, str], retry: Sequence[str] = (), feed: Feed | None = None
    ) -> Labelling:
        """Label a unit, but for the rows to skip. Units may overlap. retry: see `Engine.run`; feed: see
        `Labeller.label`.

        Raises Preempted.
        """
        from pipeline.retry import relabel

        with self._staying() as labeller:
            commit = relabel(labeller, unit, retry, skip) if retry else labeller.label(unit, skip, feed)
            return Labelling(commit, labeller.recorder.take() if labeller.recorder else None)

    def rehearse(self, unit: Unit, rows: range, skip: Mapping[int, str]) -> int:
        """See `Labeller.rehearse`. Raises Preempted."""
        with self._staying() as labeller:
            return labeller.rehearse(unit, rows, skip)

    @contextmanager
    def _staying(self) -> Iterator[Labeller]:
        """While entered, the replica does not leave before its grace is over."""
        from pipeline.label import Cancelled

        with self._idle:
            if self._leaving.is_set() or self._labeller is None:
                raise Preempted
            self._in_flight += 1
        try:
            with plain_errors():
                yield self._labeller
        except Cancelled:
            raise Preempted from None
        finally:
            with self._idle:
                self._in_flight -= 1
                self._idle.notify_all()

    def _leave(self) -> None:
        with self._idle:
            self._leaving.set()
            self._idle.wait_for(lambda: not self._in_flight, self._grace)
            if self._labeller is not None:
                self._labeller.cancel()
            self._idle.wait_for(lambda: not self._in_flight)
        time.sleep(LAST_WORDS_SECONDS)
        os._exit(0)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Errors that any driver can unpickle: ours as they are, others as their text (the log has all)."""
    from pipeline.label import Cancelled

    try:
        yield
    except (DecantError, Cancelled):
        raise
    except Exception as error:
        logging.getLogger(__name__).exception("a replica failed")
        raise RuntimeError(sentence(error)) from None
