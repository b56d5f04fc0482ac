"""`decant plan`: what the corpus is, how it is cut, and what labelling it will take."""

from __future__ import annotations

from pathlib import Path
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
    budget: Annotated[
        str | None,
        typer.Option(metavar="20B/token", help="Find the codec that takes so many bytes; writes nothing."),
    ] = None,
    error: Annotated[
        float | None,
        typer.Option(min=0.0, help="Find the codec of this squared gradient error; writes nothing."),
    ] = None,
    pilot: Annotated[
        int, typer.Option(min=16, help="Targets that --budget and --error label for it.")
    ] = 4096,
    head: Annotated[str | None, typer.Option(help="The head to size, where the job keeps several.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw error over bytes by codec into this .svg, .png or .pdf.")
    ] = None,
    price: Annotated[
        float | None, typer.Option(min=0.0, help="Of a replica's hour, to say what it costs.")
    ] = None,
) -> None:
    """List the corpus, cut it into units, estimate the work.

    The plan goes into the store. Nothing is labelled, but the teacher and the tokenizer are opened and the
    store is made, so whatever is wrong with the job shows here. Planning again after the corpus has grown
    adds units and changes none.

    \b
      decant plan job.yaml
      decant plan job.yaml --measure corpus.unit_bytes=4194304
      decant plan job.yaml --budget 12B/token --plot pilot.svg

    With --budget or --error a pilot labels a few thousand targets in memory and says what threshold to take
    and what it keeps: entries stored, the share of the probability kept and not sampled (head mass), the
    squared error and the angle of the student's gradient against full distributions, and how much
    probability is in the wrong place on average, which more data does not mend (misplaced). An embedding head
    is sized among float16, int8 and codebooks of 8 to 64 bytes; the budget is of a vector alone, the error is
    one less the mean cosine to the teacher's vector, on vectors that no codebook has seen.

    Next: decant label job.yaml
    """
    from jobs.config import load_job
    from jobs.preparation import prepared

    labelling = load_job(job, overrides or ()).labelling()
    if budget is not None or error is not None:
        _size(job, labelling, budget, error, pilot, head, plot, price)
        return
    store = prepared(labelling)
    if measure and (unit := next(iter(store.pending()), None)) is not None:
        from pipeline.label import Labeller

        with err().status(f"labelling the first of the pending units, {size(unit.size_bytes)} …"):
            Labeller(labelling).label(unit)
    _say(_table(labelling, store))
    if Extent.of(store).pending:
        _say(f"Next: decant label {job}")
    else:
        _say(f"All units are labelled. Next: decant inspect {store.url}")


def _size(
    path: Path,
    job: LabelJob,
    budget: str | None,
    error: float | None,
    targets: int,
    head: str | None,
    plot: Path | None,
    price: float | None,
) -> None:
    """A pilot: the codec for a budget, what it keeps, and what the corpus will take."""
    from jobs import sizing, vector_sizing
    from pipeline.answers import head_of

    name = head_of(job, head)
    most = None if budget is None else sizing.parse_budget(budget)
    wish = sizing.Wish(name, targets, most, error, plot)
    find = vector_sizing.find if job.store.heads[name].of == "embeddings" else sizing.find
    with err().status("opening the teacher, answering the pilot's targets …") as status:
        found = find(job, wish, status.update)
    _say(found.table)
    _say(sizing.summary(found.corpus, f"{found.target}s", price))
    if plot is not None:
        _say(f"drawn: {plot}")
    _say(f"Next: decant plan {path} {found.setting}")


def _say(what: str | Table) -> None:
    out().print(what, soft_wrap=isinstance(what, str), markup=False)


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
        settings = ", ".join(
            f"{key} {value}" for key, value in head.codec.to_json().items() if key not in ("kind", "words")
        )
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
