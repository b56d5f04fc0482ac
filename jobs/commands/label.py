"""`decant label`: the labelling run, its view, its signals and its summary."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from jobs.commands.arguments import JobFile, Overrides
from jobs.document import split
from jobs.folding import Folding
from jobs.preparation import prepared
from jobs.problems import is_secret
from jobs.profile import Reading
from jobs.progress import Display, LabelView
from jobs.signals import Drain
from jobs.terminal import complain, count, err, out, size
from jobs.totals import Totals, targets_are
from pipeline.targets.errors import DecantError

if TYPE_CHECKING:
    from jobs.logs import EventLog
    from jobs.notify import Ending, NotifyConfig
    from pipeline.engine.base import Engine, Event
    from pipeline.job import LabelJob
    from pipeline.targets.store import Store
    from pipeline.targets.unit import Unit


Observer = Callable[["Event"], None]


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(label)


class LogFormat(StrEnum):
    """What is written to standard error while a job runs."""

    text = "text"
    json = "json"


def label(
    job: JobFile,
    overrides: Overrides = None,
    log_format: Annotated[
        LogFormat, typer.Option("--log-format", help="json: one JSON object for each event, nothing drawn.")
    ] = LogFormat.text,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            "--metrics-port", min=0, max=65535, help="Serve Prometheus metrics there; 0 takes a free port."
        ),
    ] = None,
    metrics_address: Annotated[
        str, typer.Option("--metrics-address", help="Where --metrics-port listens; 0.0.0.0 is everywhere.")
    ] = "127.0.0.1",
    profile: Annotated[
        bool,
        typer.Option("--profile", help="At the end, tell which stage the time went to, and which to blame."),
    ] = False,
) -> None:
    """Label the corpus with the teacher, into the store.

    Plans what is not planned yet, then labels every unit that has no commit. Run it again after anything that
    stopped it, and it goes on with the rest; nothing is labelled twice. The first Ctrl-C or SIGTERM lets the
    units in flight finish and leaves with code 1; a second one aborts with code 130. Either way what was
    committed is whole. Who is told of the end stands in the job (notify).

    \b
      decant label job.yaml
      decant label job.yaml --profile
      decant label job.yaml label.engine=ray label.replicas.max=4
      decant label job.yaml label.engine=ray label.address=auto     on a running Ray cluster
      decant label job.yaml --metrics-port 9400 --log-format json   for machines that look on

    Next: decant inspect STORE, decant verify STORE, decant train job.yaml
    """
    from jobs.config import load_job
    from jobs.logs import EventLog
    from jobs.notify import Ending
    from jobs.redaction import Redaction

    asked = [*(overrides or ()), *(["label.profile=true"] if profile else [])]
    loaded = load_job(job, asked)
    redact = Redaction(loaded)
    labelling, ending = loaded.labelling(), Ending(loaded.store.url)
    with ExitStack() as run:
        log = run.enter_context(EventLog(redact)) if log_format is LogFormat.json else None
        run.enter_context(_told(loaded.notify, ending, redact, log))
        store = prepared(labelling, drawn=log is None)
        ending.store = store.url
        ending.planned, ending.committed = store.planned_count(), len(store.committed())
        if ending.committed < ending.planned:
            _label(labelling, store, ending, log, metrics_port, metrics_address)
        store.compact()
        ending.committed = len(store.committed())
        left = ending.planned - ending.committed
        ending.status = "stopped" if left else "complete"
        totals = Totals.of(store.commits(statistics=False))
        for name in ("records", "targets", "shard_bytes", "quarantined", "failures"):
            ending.counts[name] = getattr(totals, name)
    if left:
        done = (
            f"{count(ending.committed)} of {count(ending.planned)} units are labelled, {count(left)} are left"
        )
        _say(f"stopped: {done}.")
        _say(f"To go on: {_again(job, overrides)}")
        raise typer.Exit(1)
    for line in _summary(store, totals):
        _say(line)
    _say(f"Next: decant inspect {store.url}")


def _label(
    job: LabelJob,
    store: Store,
    ending: Ending,
    log: EventLog | None,
    metrics_port: int | None,
    metrics_address: str,
) -> None:
    """Label what is pending, for all that look on; `ending` counts what was done, whatever happens."""
    view = LabelView(f"labelling into {store.url}", ending.planned, ending.committed, targets_are(store.spec))
    with ExitStack() as looking:
        folding = looking.enter_context(Folding(store, view.say if log is None else log.warn))
        observers: list[Observer] = [folding.on]
        if log is not None:
            log.say("labelling", store=store.url, planned=ending.planned, committed=ending.committed)
            observers.append(log.on)
        if metrics_port is not None:
            from jobs.metrics import Metrics

            metrics = Metrics(ending.planned, ending.committed)
            url = looking.enter_context(metrics.served(metrics_port, metrics_address))
            # Before the log: whoever reads a line and then asks for the numbers finds them counted.
            observers.insert(0, metrics.on)
            if log is None:
                view.say(f"metrics: {url}")
            else:
                log.say("metrics", url=url)
        try:
            label_units(job, store.pending(), view, observers, log)
        finally:
            ending.labelled = view.totals.units
            ending.committed += view.totals.units
    _show_profile(view, job.label.preprocess.cpus)


def label_units(
    job: LabelJob,
    units: Iterable[Unit],
    view: LabelView,
    observers: Iterable[Observer] = (),
    log: EventLog | None = None,
    retry: Sequence[str] = (),
) -> None:
    """Run the job's engine over the units, and stop it at Ctrl-C. Raises what `Engine.run` raises.

    view: is drawn, unless there is a log. observers: are told every event too. retry: see there.
    """

    def asked(signal: str) -> None:
        view.note = f"{signal}: letting the units in flight finish; once more aborts"
        if log is not None:
            log.say("draining", signal=signal)

    with Drain(asked) as drain, Display(view, err() if log is None else None):
        # Closed also when this thread is interrupted, so that no replica outlives the run.
        events = cast("Generator[Event]", _engine(job).run(job, units, drain.stop, retry))
        with closing(events):
            for event in events:
                view.on(event)
                for observer in observers:
                    observer(event)


@contextmanager
def _told(
    config: NotifyConfig, ending: Ending, redact: Callable[[str], str], log: EventLog | None
) -> Iterator[None]:
    """Tells of the run's end when it is left, however that is. With a log, failures are lines of it."""
    from jobs.notify import notify
    from pipeline.engine.base import sentence

    began = time.monotonic()

    def tell(failure: BaseException | None) -> None:
        ending.seconds = time.monotonic() - began
        if log is not None:
            unforeseen = not isinstance(failure, DecantError | KeyboardInterrupt | None)
            level = logging.INFO if failure is None else logging.ERROR
            log.say("ended", level, failure if unforeseen else None, **ending.to_json())
        for problem in notify(config, ending):
            if log is not None:
                log.warn(problem)
            else:
                complain(problem)

    try:
        yield
    except KeyboardInterrupt as error:
        ending.status = "aborted"
        tell(error)
        if log is None:
            raise
        raise typer.Exit(130) from None
    except Exception as error:
        ending.status, ending.error = "failed", redact(sentence(error))
        tell(error)
        if log is None:
            raise
        raise typer.Exit(getattr(error, "exit_code", 1)) from None
    tell(None)


def _engine(job: LabelJob) -> Engine:
    if job.label.engine == "local":
        from pipeline.engine.local import Local

        return Local()
    from pipeline.engine.ray import RayEngine

    return RayEngine()


def _show_profile(view: LabelView, cpus: float) -> None:
    """cpus: of a preprocessing actor."""
    if view.profile.working:
        for part in Reading(view.profile, len(view.profiled), cpus * len(view.preprocessors)).render():
            err().print(part)


def _summary(store: Store, totals: Totals) -> Iterator[str]:
    target = targets_are(store.spec)
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
    """The command, without the credentials that were given on it."""
    shown = [
        override.partition("=")[0] + "=***" if is_secret(split(override)[0]) else override
        for override in overrides or ()
    ]
    return " ".join(["decant label", str(job), *shown])


def _say(line: str) -> None:
    out().print(line, soft_wrap=True, markup=False)
