"""`decant repair`: damaged units are labelled again, and nothing else is touched."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from jobs.commands.arguments import JobFile, Overrides
from jobs.commands.label import label_units
from jobs.commands.stores import verification
from jobs.progress import LabelView
from jobs.terminal import count, err, out
from jobs.totals import targets_are

if TYPE_CHECKING:
    from pipeline.job import LabelJob
    from pipeline.targets.store import Store
    from pipeline.targets.unit import Unit


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(repair)


def repair(job: JobFile, overrides: Overrides = None) -> None:
    """Label the units again whose shards are damaged.

    Verifies the whole store, takes the damaged units out, labels them again, and verifies those. Units that
    are whole are not touched, and units that were never labelled stay so. Killed at any moment, the same
    command goes on. Before anything is taken out, teacher, tokenizer and corpus must be those of the store.

    \b
      decant repair job.yaml

    Next: decant verify STORE, decant audit job.yaml
    """
    from jobs.config import load_job
    from pipeline import repair as repairing
    from pipeline.targets.store import Store

    labelling = load_job(job, overrides or ()).labelling()
    store = Store.open(labelling.store.url, labelling.store.options)
    problems = verification(store).problems
    for problem in problems:
        _say(f"{problem.shard or problem.unit}: {problem.reason}")
    damaged = {problem.unit for problem in problems}
    repairing.finish(store)  # what an earlier run labelled and could not say so
    if not damaged and not repairing.begun(store):
        _say("all of it is whole: nothing to repair")
        return
    with err().status("opening the teacher, reading the corpus of the damaged units …"):
        units, lost = repairing.prepare(labelling, store, damaged)
    for reason in lost:
        _say(reason)
    if units:
        _label(labelling, store, units)
    left = repairing.finish(store)
    for problem in left:
        _say(f"{problem.shard or problem.unit}: {problem.reason}")
    whole = len(units) - len(repairing.begun(store))
    _say(f"{count(whole)} units labelled again and verified, {count(len(lost))} left as they were")
    if lost or left or whole < len(units):
        raise typer.Exit(1)


def _label(job: LabelJob, store: Store, units: list[Unit]) -> None:
    title = f"labelling {count(len(units))} damaged units of {store.url} again"
    label_units(job, units, LabelView(title, len(units), 0, targets_are(store.spec)))


def _say(line: str) -> None:
    out().print(line, soft_wrap=True, markup=False)
