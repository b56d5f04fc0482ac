"""What a person sees while something takes its time: a live view on a terminal, plain lines elsewhere.

`LabelView` is fed the engine's events, `Work` counts; neither knows how the work is done. A labelling's rates
are of the last minute, all else is of the whole run.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from jobs.terminal import bar, count, duration, size
from jobs.totals import Totals
from pipeline.profile import Profile

if TYPE_CHECKING:
    from pipeline.engine.base import Event

WINDOW_SECONDS = 60.0
LINE_SECONDS = 5.0
"""Between two plain lines."""

MESSAGES = 6
"""Of the latest messages, how many the live view shows."""


class LabelView:
    """The state of a run, as lines. Thread-safe enough for one writer and one reader of plain numbers.

    planned: units of the store's plan; committed: those that were done before this run; target: what a target
    is called ("tokens").
    """

    def __init__(self, title: str, planned: int, committed: int, target: str) -> None:
        self.title, self.planned, self.before, self.target = title, planned, committed, target
        self.totals = Totals()
        self.replicas: set[int] = set()
        self.pending: set[int] = set()
        self.profile, self.profiled, self.preprocessors = Profile(), set[int](), set[int]()
        self.note = ""
        self.asked = self.began = time.monotonic()
        self._recent: deque[tuple[float, int, int]] = deque()
        self._seen: set[str] = set()
        self.messages: list[str] = []

    def on(self, event: Event) -> None:
        """Takes one event of the engine."""
        from pipeline.engine import base

        match event:
            case base.ReplicaPending(replica=replica):
                self.pending.add(replica)
            case base.Started(replica=replica):
                if not self.replicas and not self.totals.units:
                    self.began = time.monotonic()  # loading a model is not labelling
                self.pending.discard(replica)
                self.replicas.add(replica)
            case base.Committed(commit=commit, replica=replica, profile=profile):
                now = time.monotonic()
                if profile is not None:
                    self.profile.add(profile)
                    self.profiled.add(replica)
                self.totals.add(commit)
                self._recent.append((now, commit.records, commit.targets or commit.rows))
                while self._recent and self._recent[0][0] < now - WINDOW_SECONDS:
                    self._recent.popleft()
            case base.Failed(unit=unit, reason=reason, attempts=attempts, given_up=given_up):
                end = ", given up" if given_up else ""
                self.say(f"unit {unit.id[:12]} failed (attempt {attempts}{end}): {reason}")
            case base.ReplicaLost(replica=replica, reason=reason):
                self.pending.discard(replica)
                self.replicas.discard(replica)
                self.say(f"replica {replica} lost: {reason}")
            case base.PreprocessorStarted(preprocessor=number):
                self.preprocessors.add(number)
            case base.PreprocessorLost(preprocessor=number, reason=reason):
                self.say(f"preprocessing actor {number} lost: {reason}")

    def say(self, message: str) -> None:
        """A message worth keeping on the screen."""
        self.messages.append(" ".join(message.split()))

    @property
    def done(self) -> int:
        """Units that have a commit record now."""
        return self.before + self.totals.units

    def rates(self) -> tuple[float, float]:
        """Records and targets per second, over the last minute."""
        now = time.monotonic()
        span = min(now - self.began, WINDOW_SECONDS)
        recent = [item for item in self._recent if item[0] >= now - WINDOW_SECONDS]
        if span <= 0 or not recent:
            return 0.0, 0.0
        return sum(item[1] for item in recent) / span, sum(item[2] for item in recent) / span

    def seconds_left(self) -> float | None:
        """At the mean pace of this run; None before its first unit."""
        if not self.totals.units:
            return None
        return (time.monotonic() - self.began) / self.totals.units * max(self.planned - self.done, 0)

    def facts(self) -> list[tuple[str, str]]:
        """Name and value, in the order shown."""
        records, targets = self.rates()
        per_target = self.totals.bytes_per_target
        waiting = len(self.pending)
        kind = self.target.removesuffix("s")
        return [
            ("units", f"{count(self.done)} of {count(self.planned)}"),
            ("records/s", f"{records:,.1f}"),
            (f"{self.target}/s", f"{targets:,.0f}"),
            (f"bytes/{kind}", "–" if per_target is None else f"{per_target:.1f}"),
            ("written", size(self.totals.shard_bytes)),
            ("replicas", f"{len(self.replicas)}{f' and {waiting} pending' if waiting else ''}"),
            ("quarantined", count(self.totals.failures)),
            ("left", duration(self.seconds_left())),
        ]

    def line(self) -> str:
        """All of it in one plain line."""
        text = ", ".join(f"{name} {value}" for name, value in self.facts())
        return f"{text}{'; ' + self.note if self.note else ''}"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(f"{self.title}  {duration(time.monotonic() - self.asked)}", style="bold")
        yield bar(self.done, self.planned, options.max_width)
        table = Table.grid(padding=(0, 3))
        facts = self.facts()
        columns = 4 if options.max_width >= 100 else 2
        for first in range(0, len(facts), columns):
            part = facts[first : first + columns]
            table.add_row(*[f"[dim]{name}[/] {escape(value)}" for name, value in part])
        yield table
        for message in self.messages[-MESSAGES:]:
            yield Text(message, style="yellow", overflow="ellipsis", no_wrap=True)
        if self.note:
            yield Text(self.note, style="bold yellow")


class Work:
    """Things done one after the other: how many of how many, the rate, the time left.

    doing: what is done to them ("verified"). total: how many there are, 0 while nobody knows. unit: what they
    are ("units"); "bytes" are shown as sizes. done: those of an earlier run, which the rate leaves out.
    first: what is happening before the first one.
    """

    note = ""

    def __init__(self, doing: str, total: int, unit: str, done: int = 0, first: str = "starting") -> None:
        self.doing, self.total, self.unit, self.first = doing, total, unit, first
        self.done = self.before = done
        self.messages: list[str] = []
        self.began = time.monotonic()

    def add(self, number: int = 1) -> None:
        """So many more are done."""
        self.done += number

    def at(self, done: int, total: int) -> None:
        """So many are done of so many. The clock starts with the first call, at nothing done."""
        if done == self.before:
            self.began = time.monotonic()
        self.done, self.total = done, total

    def line(self) -> str:
        """All of it in one plain line."""
        if not self.total:
            return f"{self.doing}: {self.first}"
        sizes = self.unit == "bytes"
        show, unit = size if sizes else count, f" {self.unit}" if self.unit and not sizes else ""
        seconds, here = max(time.monotonic() - self.began, 1e-9), self.done - self.before
        rate = f"{show(here / seconds)}/s" if sizes else f"{here / seconds:,.1f}{unit}/s"
        left = duration(seconds / here * max(self.total - self.done, 0) if here else None)
        said = f"{self.doing} {show(self.done)} of {show(self.total)}{unit}"
        return f"{said}, {rate if here else self.first}, {left} left"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield bar(self.done, self.total, options.max_width)
        yield Text(self.line())


class View(Protocol):
    """What a display draws: a renderable with a plain line and messages."""

    note: str
    messages: list[str]

    def line(self) -> str:
        """All of it in one plain line."""
        ...

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """All of it for a terminal."""
        ...


class Display:
    """While entered, draws the view: live on a terminal, else a line every few seconds and when it changes.

    console: None draws nothing (the other ranks of a distributed run).
    """

    def __init__(self, view: View, console: Console | None, seconds: float = LINE_SECONDS) -> None:
        self._view, self._console, self._seconds = view, console, seconds
        self._live: Live | None = None
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._said = 0

    def __enter__(self) -> Display:
        if self._console is None:
            return self
        if self._console.is_terminal:
            self._live = Live(self._view, console=self._console, refresh_per_second=4)
            self._live.start()
        else:
            self._thread = threading.Thread(target=self._lines, name="decant-progress")
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
        if self._thread is not None:
            self._closed.set()
            self._thread.join()
            self._messages()
            self._print(self._view.line())

    def _lines(self) -> None:
        last, note = time.monotonic(), ""
        while not self._closed.wait(0.2):
            self._messages()
            if time.monotonic() - last >= self._seconds or self._view.note != note:
                last, note = time.monotonic(), self._view.note
                self._print(self._view.line())

    def _messages(self) -> None:
        for message in self._view.messages[self._said :]:
            self._print(message)
            self._said += 1

    def _print(self, text: str) -> None:
        if self._console is not None:
            self._console.print(text, soft_wrap=True, markup=False)
