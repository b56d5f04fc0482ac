"""`decant audit`: whether what a store says is what the teacher says."""

from __future__ import annotations

import dataclasses
import json
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.table import Table

from jobs.commands.arguments import JobFile, Overrides
from jobs.progress import Display
from jobs.terminal import bar, count, duration, err, out

if TYPE_CHECKING:
    from pipeline.audit import Audit, Result


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(audit)


class AuditView:
    """Rows made again so far."""

    note = ""

    def __init__(self) -> None:
        self.done = self.rows = 0
        self.messages: list[str] = []
        self.began = time.monotonic()

    def on(self, done: int, rows: int) -> None:
        """Takes the rows that are done, and how many were chosen."""
        if not done:
            self.began = time.monotonic()  # loading a teacher is not relabelling
        self.done, self.rows = done, rows

    def line(self) -> str:
        """All of it in one plain line."""
        seconds = time.monotonic() - self.began
        left = seconds / self.done * (self.rows - self.done) if self.done else None
        rate = f"{self.done / seconds:.1f} rows/s" if self.done and seconds else "opening the teacher"
        return f"audited {count(self.done)} of {count(self.rows)} rows, {rate}, left {duration(left)}"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield bar(self.done, self.rows, options.max_width)
        yield self.line()


def audit(
    job: JobFile,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows to make again.")] = 64,
    units: Annotated[int, typer.Option(min=1, help="Of at most so many units.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Of the sample: another seed looks at other rows.")] = 0,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Nats that a log-probability may be off by: 0.005 for a teacher in float32, 0.3 in 16 bits, "
            "0.5 for an imported store, unless given.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything as one JSON object.")] = False,
) -> None:
    """Relabel a random sample of a store with the teacher, and compare.

    Reads rows of the job's store, makes their inputs again from the corpus, and asks the teacher again:
    checksums, inputs, that targets are distributions, their values, whether they are right on average, and
    whether they stand at their own tokens. Leaves with code 1 if anything is not true, with a sentence for
    each finding. An honest store fails with a probability of at most one in a million. An imported store is
    relabelled from its own inputs, with more tolerance.

    \b
      decant audit job.yaml
      decant audit job.yaml --rows 1000 --units 100 --seed 1
      decant audit job.yaml store.url=runs/imported

    Next: decant train job.yaml, or decant repair job.yaml
    """
    from jobs.config import load_job
    from pipeline.audit import audit as run

    labelling = load_job(job, overrides or ()).labelling()
    view = AuditView()
    with Display(view, err()):
        found = run(labelling, rows, units, seed, tolerance, view.on)
    if as_json:
        typer.echo(json.dumps(_data(found), indent=2, ensure_ascii=False))
    else:
        console = out()
        console.print(_table(found))
        for finding in found.findings:
            console.print(f"{finding.check}: {finding}", soft_wrap=True, markup=False)
        verdict = (
            f"{count(len(found.findings))} findings: the store is not what it says"
            if found.findings
            else f"nothing is wrong in {count(found.rows)} rows of {count(found.units)} units"
        )
        console.print(verdict)
    if found.findings:
        raise typer.Exit(1)


def _data(found: Audit) -> dict[str, Any]:
    data = dataclasses.asdict(found)
    for item, finding in zip(data["findings"], found.findings, strict=True):
        item["sentence"] = str(finding)
    return data


def _table(found: Audit) -> Table:
    from pipeline.audit import CHECKS

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("check", no_wrap=True)
    table.add_column("checked", justify="right", no_wrap=True)
    table.add_column("wrong", justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    units = {"spec": "spec", "shard": "shards", "inputs": "rows", "place": "groups of targets"}
    for check, meaning in CHECKS.items():
        wrong = sum(1 + finding.more for finding in found.findings if finding.check == check)
        checked = found.checked[check]
        style = "bold red" if wrong else None
        shown = f"{count(checked)} {units.get(check, 'targets')}" if checked or wrong else "not checked"
        table.add_row(check, shown, count(wrong) if checked or wrong else "", meaning, style=style)
    for result in found.heads:
        table.add_row("", "", "", f"[dim]{escape(_head(result))}[/]")
    return table


def _head(result: Result) -> str:
    """A head's numbers in a line."""
    if not result.targets:
        return f"{result.head}: no target was relabelled"
    parts = [
        f"{result.head}: {result.equal / result.targets:.1%} of {count(result.targets)} targets equal, the "
        f"largest difference {result.worst:.2g} nats"
    ]
    if result.shift is not None:
        parts.append(
            f"mean log-probability at their own token {result.shift.own:.3f}, at the previous "
            f"{result.shift.before:.3f}, at the next {result.shift.after:.3f}"
        )
    if result.biases:
        most = max(result.biases, key=lambda bias: bias.z)
        parts.append(f"largest bias {most.z:.1f} of {most.limit:.1f} standard deviations ({most.name})")
    return "; ".join(parts)
