"""The local engine: one replica in this process, its units in a few threads.

For debugging, a single accelerator, and machines without Ray. A unit that kills the process ends the job;
what is committed stays, and the same command goes on.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from typing import TYPE_CHECKING

from pipeline.engine.base import Attempt, Committed, Event, Ledger, Started
from pipeline.label import Labeller
from pipeline.retry import relabel
from pipeline.targets.commit import Commit
from pipeline.targets.unit import Unit

if TYPE_CHECKING:
    from pipeline.job import LabelJob

REPLICA = 0


class Local:
    """Labels in this process. Of the job's replicas it uses `units_in_flight`."""

    def run(
        self, job: LabelJob, units: Iterable[Unit], stop: threading.Event, retry: Sequence[str] = ()
    ) -> Generator[Event, None, None]:
        """See `Engine.run`."""
        ledger = Ledger(job, units)
        if ledger.empty:
            return
        labeller = Labeller(job)
        most = job.label.replicas.units_in_flight
        in_flight: dict[Future[Commit], tuple[Attempt, float]] = {}
        pool = ThreadPoolExecutor(most, thread_name_prefix="decant-unit")
        try:
            yield Started(REPLICA, os.getpid(), platform.node())
            while True:
                while len(in_flight) < most and not stop.is_set():
                    attempt = ledger.next()
                    if attempt is None:
                        break
                    work = partial(relabel, labeller, codes=retry) if retry else labeller.label
                    in_flight[pool.submit(work, attempt.unit)] = (attempt, time.monotonic())
                if not in_flight:
                    break
                for future in wait(in_flight, return_when=FIRST_COMPLETED).done:
                    attempt, began = in_flight.pop(future)
                    error = future.exception()
                    if error is None:
                        commit = future.result()
                        spent = labeller.recorder.take() if labeller.recorder else None
                        yield Committed(commit, REPLICA, time.monotonic() - began, spent)
                        ledger.committed(commit)
                    elif isinstance(error, Exception):
                        yield ledger.failed(attempt, error)
                    else:
                        raise error
        finally:
            labeller.cancel()
            pool.shutdown(cancel_futures=True)
            labeller.close()
        if not stop.is_set():
            ledger.finish()
