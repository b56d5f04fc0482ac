"""What every command does the same on a terminal, and on what is none: width, colour, numbers, complaints."""

from __future__ import annotations

import os
import sys

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

WIDTH = 110
"""Columns where there is no terminal to ask and COLUMNS is not set."""


def out() -> Console:
    """Results, on standard output."""
    return _console(stderr=False)


def err() -> Console:
    """Progress and complaints, on standard error."""
    return _console(stderr=True)


def _console(stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else WIDTH
    return Console(stderr=stderr, width=width, highlight=False, soft_wrap=False)


def complain(message: str) -> None:
    """One error, on standard error, never wrapped and never read as markup."""
    err().print(f"[bold red]decant:[/] {escape(message)}", soft_wrap=True)


def bar(done: float, total: float, width: int) -> RenderableType:
    """A progress bar on a line of its own, at most 72 columns wide."""
    line = Table.grid()
    line.add_row(ProgressBar(total=max(total, 1), completed=done, width=min(width, 72)))
    return line


def count(number: float) -> str:
    """1234567 as '1,234,567', and 1.2e9 as '1.20 G'."""
    if abs(number) < 1e7:
        return f"{number:,.0f}"
    return f"{number / 1e6:,.1f} M" if abs(number) < 1e9 else f"{number / 1e9:,.2f} G"


def size(number: float) -> str:
    """Bytes as '3.4 MB' (powers of ten)."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(number) < 999.5 or unit == "TB":
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    raise AssertionError("unreachable")


def duration(seconds: float | None) -> str:
    """Seconds as '3 s', '4 min 05 s', '2 h 10 min' or '3 d 4 h'; None as 'unknown'."""
    if seconds is None:
        return "unknown"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"
