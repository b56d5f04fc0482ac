"""Commit records are folded into the manifest while a job labels, so that nobody ever has to list very many.

It knows when: after so many commits, and not before the records are a quarter of what the manifest holds, so
that each unit is written a bounded number of times. How is the store's affair.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from pipeline.targets.errors import DecantError

if TYPE_CHECKING:
    from pipeline.engine.base import Event
    from pipeline.targets.store import Store

AT_LEAST = 10_000
"""Commits between two compactions: on S3, ten lists for whoever opens or watches the store."""


class Folding:
    """While entered, compacts the store in a thread when the events that `on` is told are enough."""

    def __init__(self, store: Store, say: Callable[[str], None]) -> None:
        """say: is told what a compaction failed of, which is no failure of the job: the next one mends it."""
        self._store, self._say = store, say
        self._commits, self._folded = 0, len(store.manifest())
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Folding:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._thread.join()

    def on(self, event: Event) -> None:
        """Takes one event of the engine."""
        from pipeline.engine.base import Committed

        if not isinstance(event, Committed):
            return
        self._commits += 1
        if self._commits < max(AT_LEAST, self._folded / 4):
            return
        if self._thread is not None and self._thread.is_alive():
            return
        self._commits = 0
        self._thread = threading.Thread(target=self._compact, name="decant-compact")
        self._thread.start()

    def _compact(self) -> None:
        try:
            self._folded = self._store.compact()
        except (DecantError, OSError) as error:
            self._say(f"the store could not be compacted for now: {error}")
