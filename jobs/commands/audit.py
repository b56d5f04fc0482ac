"""`decant audit`: whether what a store says is what the teacher says."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from jobs.commands.arguments import Options, Overrides, is_job, open_store
from jobs.progress import Display, Work
from jobs.terminal import count, err, out
from pipeline.targets.errors import UserError

if TYPE_CHECKING:
    from pipeline.audit import Audit, Result


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(audit)


def audit(
    where: Annotated[
        str,
        typer.Argument(metavar="JOB.yaml", help="The job file; with --teacher, a store.", show_default=False),
    ],
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
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|YAML",
            help="Of an imported store: the directory of the causal language model that it is said to be of, "
            "or any teacher as a job states it, {kind: …}.",
            show_default=False,
        ),
    ] = None,
    option: Options = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything as one JSON object.")] = False,
) -> None:
    """Relabel a random sample of a store with the teacher, and compare.

    Reads rows of the job's store, makes their inputs again from the corpus, and asks the teacher again:
    checksums, inputs, that targets are distributions, their values, whether they are right on average, and
    whether they stand at their own tokens. Leaves with code 1 if anything is not true, with a sentence for
    each finding. An honest store fails with a probability of at most one in a million. An imported store has
    no job: name its teacher, and it is relabelled from its own inputs, with more tolerance.

    \b
      decant audit job.yaml
      decant audit job.yaml --rows 1000 --units 100 --seed 1
      decant audit runs/imported --teacher models/teacher
      decant audit runs/imported --teacher '{kind: causal_lm, path: models/teacher, dtype: bfloat16}'

    Next: decant train job.yaml, or decant repair job.yaml
    """
    from jobs.config import load_job, load_teacher
    from pipeline import audit as auditing

    if teacher is None and not is_job(where):
        raise UserError(
            f"{where} is no job file, and nothing says which teacher to ask: give the job file; for an "
            "imported store give --teacher"
        )
    work = Work("audited", 0, "rows", first="opening the teacher")
    if teacher is None:
        labelling = load_job(where, overrides or ()).labelling()
        with Display(work, err()):
            found = auditing.audit(labelling, rows, units, seed, tolerance, work.at)
    else:
        config, (store, _) = load_teacher(teacher), open_store(where, option)
        with Display(work, err()):
            found = auditing.audit_imported(store, config, rows, units, seed, tolerance, work.at)
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
