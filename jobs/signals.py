"""Ctrl-C and SIGTERM of a labelling run: the first asks it to drain, the second aborts it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Drain:
    """While entered, the first signal sets `stop` and calls `asked` with its name, the next interrupts.

    Works in the main thread only, as signal handlers do.
    """

    def __init__(self, asked: Callable[[str], None]) -> None:
        self.stop = threading.Event()
        self._asked = asked
        self._signalled = False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Drain:
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._signalled:
            raise KeyboardInterrupt
        self._signalled = True
        # In a thread of its own: the handler runs between two instructions of the main thread, which may hold
        # the very lock that Event.set takes.
        threading.Thread(target=self.stop.set, name="decant-drain").start()
        self._asked(signal.Signals(number).name)
