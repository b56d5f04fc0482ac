"""`decant plan`: what the corpus is, how it is cut, and what labelling it will take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from jobs.commands.arguments import JobFile, Overrides
from jobs.terminal import count, duration, err, out, size
from jobs.totals import Extent, Totals, estimate, targets_are

if TYPE_CHECKING:
    from pipeline.job import LabelJob
    from pipeline.targets.store import Store


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(plan)


def plan(
    job: JobFile,
    overrides: Overrides = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Label the first pending unit (it is kept) for an estimate.")
    ] = False,
) -> None:
    """List the corpus, cut it into units, estimate the work.

    The plan goes into the store. Nothing is labelled, but the teacher and the tokenizer are opened and the
    store is made, so whatever is wrong with the job shows here. Planning again after the corpus has grown
    adds units and changes none.

    \b
      decant plan job.yaml
      decant plan job.yaml --measure corpus.unit_bytes=4194304

    Next: decant label job.yaml
    """
    from jobs.config import load_job
    from pipeline.prepare import prepare

    labelling = load_job(job, overrides or ()).labelling()

    with err().status("listing the corpus, opening the teacher …"):
        store = prepare(labelling)
    if measure and (unit := next(iter(store.pending()), None)) is not None:
        from pipeline.label import Labeller

        with err().status(f"labelling the first of the pending units, {size(unit.size_bytes)} …"):
            Labeller(labelling).label(unit)
    console = out()
    console.print(_table(labelling, store))
    if Extent.of(store).pending:
        console.print(f"Next: decant label {job}", soft_wrap=True, markup=False)
    else:
        console.print(
            f"All units are labelled. Next: decant inspect {store.url}", soft_wrap=True, markup=False
        )


def _table(job: LabelJob, store: Store) -> Table:
    extent, totals, target = Extent.of(store), Totals.of(store.commits()), targets_are(store.spec)
    files: set[str] = set()
    for unit in store.planned():
        files.update(part.url for part in unit.slices)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    table.add_row("store", store.url)
    table.add_row("corpus", f"{count(len(files))} files, {size(extent.planned_bytes)}")
    table.add_row(
        "units", f"{count(extent.planned)}, {size(extent.planned_bytes / max(extent.planned, 1))} each"
    )
    table.add_row(
        "labelled", f"{count(extent.committed)} units, {size(extent.committed_bytes)} of the corpus"
    )
    for head in store.spec.heads:
        settings = ", ".join(f"{key} {value}" for key, value in head.codec.to_json().items() if key != "kind")
        table.add_row(f"head {head.name}", f"{count(head.size)} classes, {head.codec.kind} ({settings})")
    table.add_row("to do", _to_do(job, extent, totals, target))
    return table


def _to_do(job: LabelJob, extent: Extent, totals: Totals, target: str) -> str:
    rest = f"{count(extent.pending)} units"
    expected = estimate(extent, totals)
    if not extent.pending:
        return "nothing"
    if expected is None:
        return f"{rest} (for an estimate: decant plan … --measure)"
    replicas = job.label.replicas.max if job.label.engine == "ray" else 1
    return (
        f"{rest}, about {count(expected.targets)} {target}, {size(expected.shard_bytes)} of shards, "
        f"{duration(expected.replica_seconds / replicas)} of {replicas} "
        f"replica{'s' if replicas > 1 else ''} (judged by {count(extent.committed)} labelled)"
    )
