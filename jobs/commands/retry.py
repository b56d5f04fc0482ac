"""`decant retry-quarantine`: what could not be labelled is tried again, and what could is not touched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from jobs.commands.arguments import JobFile, Overrides
from jobs.commands.label import label_units
from jobs.progress import LabelView
from jobs.terminal import count, err, out
from jobs.totals import targets_are

if TYPE_CHECKING:
    from pipeline.engine.base import Event


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("retry-quarantine")(retry_quarantine)


def retry_quarantine(
    job: JobFile,
    overrides: Overrides = None,
    code: Annotated[
        list[str] | None,
        typer.Option(help="Retry what has this code; may be given several times. Default: what may pass."),
    ] = None,
) -> None:
    """Label again what is in quarantine for a reason that may have passed.

    That is what has the code killed, teacher_failed or undecodable. Rows that are labelled stay as they are,
    byte for byte; a unit's new shard takes the place of the present one at once. Killed at any moment, the
    store is whole, and the same command goes on. Then `decant gc` removes the shards that were replaced.

    \b
      decant retry-quarantine job.yaml
      decant retry-quarantine job.yaml --code teacher_failed label.batching.budget=1024

    Next: decant inspect STORE --quarantine, decant gc STORE
    """
    from jobs.config import load_job
    from pipeline.engine.base import Committed
    from pipeline.retry import PASSING, Replacements
    from pipeline.targets.store import Store

    labelling = load_job(job, overrides or ()).labelling()
    store = Store.open(labelling.store.url, labelling.store.options)
    codes = tuple(code or PASSING)
    with err().status("reading the quarantine …"):
        replacements = Replacements(store, codes)
    if not replacements:
        _say(f"nothing is in quarantine as {', '.join(codes)}: nothing to retry")
        return

    def relabelled(event: Event) -> None:
        if isinstance(event, Committed):
            replacements.add(event.commit)

    title = f"retrying the quarantine of {store.url}"
    view = LabelView(title, len(replacements), 0, targets_are(store.spec))
    try:
        label_units(labelling, replacements.units(), view, [relabelled], retry=codes)
    finally:
        replacements.flush()
    found, labelled = replacements.found, replacements.labelled
    _say(f"{count(labelled)} of {count(found)} labelled, {count(found - labelled)} stay in quarantine")


def _say(line: str) -> None:
    out().print(line, soft_wrap=True, markup=False)
