"""How the demo speaks: numbered stages, each with what happens and why, its lines, and the time it took.

It knows the console and nothing of what the stages do.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from jobs.progress import Display
from jobs.terminal import count, duration

INDENT = 3


class Stages:
    """The demo's output on one console, from its start on."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.began = time.monotonic()
        self._number = 0

    @property
    def seconds(self) -> float:
        """Since the demo began."""
        return time.monotonic() - self.began

    def open(self, output: Path) -> None:
        """The first lines."""
        self.console.print("[bold]Decant[/]: a teacher labels once, students learn from what it said.")
        self.console.print(f"[dim]Everything goes to {escape(str(output.resolve()))}.[/]")

    def close(self, output: Path, report: Path) -> None:
        """The last lines: where all is, and what to try next."""
        self.console.print()
        self.console.rule("[bold]Done", align="left", style="dim")
        store, job = output / "text" / "store", output / "text" / "job.yaml"
        self.console.print(f"The whole demo took {duration(self.seconds)}. Open the report:")
        self.say(str(report.resolve()), "bold")
        self.console.print("What to try next:")
        for command, what in (
            (f"decant inspect {job}", "the store, and what the teacher said of real code"),
            (f"decant verify {store}", "every checksum again"),
            (f"decant train {job} train.steps=1000", "a student of your own from the same store"),
            ("decant config example text > job.yaml", "a job file for your corpus and your teacher"),
        ):
            self.console.print(f"   [cyan]{escape(command)}[/]  [dim]{what}[/]", soft_wrap=True)

    def part(self, title: str) -> None:
        """A rule over the stages of one leg."""
        self.console.print()
        self.console.rule(f"[bold]{escape(title)}", align="left", style="dim")

    @contextmanager
    def stage(self, title: str, why: str = "") -> Iterator[None]:
        """One step. why: a sentence or two for whoever sees this for the first time."""
        self._number += 1
        began = time.monotonic()
        self.console.print(f"\n[bold cyan]{self._number:>2}[/] [bold]{escape(title)}[/]")
        if why:
            self._indented(Text(why, style="dim"))
        yield
        took = time.monotonic() - began
        self._indented(
            Text(f"{duration(took)}, {duration(self.seconds)} since the beginning", style="dim italic")
        )

    def say(self, line: str, style: str = "") -> None:
        """A line of the present stage; no markup."""
        self._indented(Text(line, style=style))

    def table(self, table: Table) -> None:
        """A table of the present stage."""
        self._indented(table)

    def display(self, view: StepView) -> Display:
        """While entered, shows a training run."""
        return Display(view, self.console)

    def _indented(self, what: Text | Table) -> None:
        self.console.print(Padding(what, (0, 0, 0, INDENT)))


@dataclass
class StepView:
    """A run of known length: a bar, what it says of itself, and the time left.

    done, total: in whatever unit; fact: what is worth knowing now.
    """

    title: str
    total: float
    done: float = 0.0
    fact: str = ""

    def __post_init__(self) -> None:
        self.note = ""
        self.messages: list[str] = []
        self._first: tuple[float, float] | None = None

    def move(self, done: float, fact: str) -> None:
        """Progress."""
        if done and self._first is None:
            self._first = time.monotonic(), done
        self.done, self.fact = done, fact

    def seconds_left(self) -> float | None:
        """At the mean pace since the first progress; None before the second."""
        if self._first is None or self.done <= self._first[1]:
            return None
        began, before = self._first
        return (time.monotonic() - began) / (self.done - before) * (self.total - self.done)

    def line(self) -> str:
        """All of it in one plain line."""
        if not self.done:
            return f"   {self.title}: {self.fact or 'starting'}"
        left = duration(self.seconds_left())
        return f"   {self.title}: {100 * self.done / self.total:.0f} %, {self.fact}, {left} left"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        bar = ProgressBar(total=self.total, completed=self.done, width=min(options.max_width - INDENT, 72))
        yield Padding(bar, (0, 0, 0, INDENT))
        yield Text(self.line(), overflow="ellipsis", no_wrap=True)


def figures(*rows: tuple[str, str]) -> Table:
    """Names and values, in two columns."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column()
    for name, value in rows:
        grid.add_row(escape(name), escape(value))
    return grid


def plural(number: int, what: str) -> str:
    """'1 unit', '2 units'."""
    return f"{count(number)} {what}{'' if number == 1 else 's'}"
