"""`decant label`: the labelling run, its view, its signals and its summary."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from jobs.commands.arguments import JobFile, Overrides
from jobs.profile import Reading
from jobs.progress import Display, LabelView
from jobs.signals import Drain
from jobs.terminal import count, err, out, size
from jobs.totals import Totals, targets_are

if TYPE_CHECKING:
    from pipeline.engine.base import Engine, Event
    from pipeline.job import LabelJob
    from pipeline.targets.commit import Commit
    from pipeline.targets.store import Store
    from pipeline.targets.unit import Unit


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(label)


def label(
    job: JobFile,
    overrides: Overrides = None,
    profile: Annotated[
        bool,
        typer.Option("--profile", help="At the end, tell which stage the time went to, and which to blame."),
    ] = False,
) -> None:
    """Label the corpus with the teacher, into the store.

    Plans what is not planned yet, then labels every unit that has no commit. Run it again after anything that
    stopped it, and it goes on with the rest; nothing is labelled twice. The first Ctrl-C or SIGTERM lets the
    units in flight finish and leaves with code 1; a second one aborts with code 130. Either way what was
    committed is whole.

    \b
      decant label job.yaml
      decant label job.yaml --profile
      decant label job.yaml label.engine=ray label.replicas.max=4
      decant label job.yaml label.engine=ray label.address=auto     on a running Ray cluster

    Next: decant inspect STORE, decant verify STORE, decant train job.yaml
    """
    from jobs.config import load_job
    from jobs.preparation import prepared

    asked = [*(overrides or ()), *(["label.profile=true"] if profile else [])]
    labelling = load_job(job, asked).labelling()
    store = prepared(labelling)
    planned, before = store.planned_count(), len(store.committed())
    if before < planned:
        view = LabelView(f"labelling into {store.url}", planned, before, targets_are(store.spec))
        label_units(labelling, store.pending(), view)
        _show_profile(view)
    store.compact()
    left = planned - len(store.committed())
    if left:
        done = f"{count(planned - left)} of {count(planned)} units are labelled, {count(left)} are left"
        _say(f"stopped: {done}.")
        _say(f"To go on: {_again(job, overrides)}")
        raise typer.Exit(1)
    for line in _summary(store):
        _say(line)
    _say(f"Next: decant inspect {store.url}")


def label_units(
    job: LabelJob,
    units: Iterable[Unit],
    view: LabelView,
    retry: Sequence[str] = (),
    done: Callable[[Commit], None] = lambda commit: None,
) -> None:
    """Run the job's engine over the units, drawn, and stopped by Ctrl-C. Raises what `Engine.run` raises.

    retry: see there. done: called with each unit's record.
    """

    from pipeline.engine.base import Committed

    def asked(signal: str) -> None:
        view.note = f"{signal}: letting the units in flight finish; once more aborts"

    with Drain(asked) as drain, Display(view, err()):
        # Closed also when this thread is interrupted, so that no replica outlives the run.
        events = cast("Generator[Event]", _engine(job).run(job, units, drain.stop, retry))
        with closing(events):
            for event in events:
                view.on(event)
                if isinstance(event, Committed):
                    done(event.commit)


def _engine(job: LabelJob) -> Engine:
    if job.label.engine == "local":
        from pipeline.engine.local import Local

        return Local()
    from pipeline.engine.ray import RayEngine

    return RayEngine()


def _show_profile(view: LabelView) -> None:
    if view.profile.working:
        for part in Reading(view.profile, len(view.profiled)).render():
            err().print(part)


def _summary(store: Store) -> Iterator[str]:
    totals, target = Totals.of(store.commits()), targets_are(store.spec)
    yield (
        f"labelled: {count(totals.records)} records in {count(totals.units)} units, "
        f"{count(totals.targets)} {target}, {size(totals.shard_bytes)}"
        + (f", {totals.bytes_per_target:.1f} bytes per {target.removesuffix('s')}" if totals.targets else "")
    )
    if totals.quarantined:
        empty = totals.quarantined - totals.failures
        yield (
            f"quarantined: {count(totals.failures)} failures and {count(empty)} empty records "
            f"(decant inspect {store.url} --quarantine)"
        )


def _again(job: Path, overrides: list[str] | None) -> str:
    return " ".join(["decant label", str(job), *(overrides or ())])


def _say(line: str) -> None:
    out().print(line, soft_wrap=True, markup=False)
