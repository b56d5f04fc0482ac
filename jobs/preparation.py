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


def prepared(job: LabelJob) -> Store:
    """The job's store, planned. Prints what codebooks were learned, and how well they keep directions.

    Raises what `pipeline.prepare.prepare` raises.
    """
    from pipeline.prepare import prepare

    learned: list[Learned] = []
    work = Work("", 0, "")
    with ExitStack() as shown:
        status = shown.enter_context(err().status("listing the corpus, opening the teacher …"))

        def watch(what: str, done: int, total: int) -> None:
            if not work.total:
                status.stop()
                shown.enter_context(Display(work, err()))
            work.doing = what
            work.at(done, total)

        store = prepare(job, learned.append, watch)
    for found in learned:
        out().print(f"codebooks of the head {found.head}: {found}", soft_wrap=True, markup=False)
    return store
