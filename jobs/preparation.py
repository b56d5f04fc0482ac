"""A job is prepared while a person watches: a spinner, and a bar where codebooks are learned first."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from jobs.progress import Display, Work
from jobs.terminal import err, out

if TYPE_CHECKING:
    from pipeline.codebooks import Learned
    from pipeline.job import LabelJob
    from pipeline.targets.store import Store


def prepared(job: LabelJob, drawn: bool = True) -> Store:
    """The job's store, planned. Prints what codebooks were learned, and how well they keep directions.

    drawn: whether progress is shown. Raises what `pipeline.prepare.prepare` raises.
    """
    from pipeline.prepare import prepare

    learned: list[Learned] = []
    work = Work("", 0, "")
    with ExitStack() as shown:
        status = err().status("listing the corpus, opening the teacher …")
        if drawn:
            shown.enter_context(status)

        def watch(what: str, done: int, total: int) -> None:
            if not work.total:
                status.stop()
                shown.enter_context(Display(work, err() if drawn else None))
            work.doing = what
            work.at(done, total)

        store = prepare(job, learned.append, watch)
    for found in learned:
        out().print(f"codebooks of the head {found.head}: {found}", soft_wrap=True, markup=False)
    return store
