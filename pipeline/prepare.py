"""Before labelling: what the store declares, and which units there are. It labels nothing but a pilot."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from pipeline.codebooks import Learned, Progress, books_for
from pipeline.declaration import NO_BOOKS, specify
from pipeline.inference import free_memory
from pipeline.targets.codecs import Codebooks
from pipeline.targets.errors import PlannedMeanwhile, SpecMismatch
from pipeline.targets.spec import Spec
from pipeline.targets.store import Store

if TYPE_CHECKING:
    from pipeline.job import LabelJob


def prepare(
    job: LabelJob,
    learned: Callable[[Learned], None] | None = None,
    progress: Progress | None = None,
) -> Store:
    """Make or open the job's store, and plan what of the corpus is not planned yet.

    Codebooks that the job says to learn are learned where there is no store yet; else they are the store's.
    learned: called for each head whose books were; progress: of that.
    Raises ConfigError, SpecMismatch, CorpusMissing, CorpusChanged, StorageError, TeacherError: whatever is
    wrong with a job shows here, before anything is labelled.
    """
    books = books_for(job, learned, progress)
    try:
        store = Store.create(job.store.url, declared(job, books), job.store.options)
    except SpecMismatch:
        if not books:
            raise
        # Another driver may have made the store meanwhile, with books that it learned itself: then these.
        store = Store.create(job.store.url, declared(job, books_for(job)), job.store.options)
    corpus = job.corpus.described()
    while True:
        latest = store.generation()
        planned = {part.url: part.fingerprint for unit in store.planned() for part in unit.slices}
        with contextlib.suppress(PlannedMeanwhile):
            store.write_plan(job.corpus.units(planned), corpus, latest)
            return store


def declared(job: LabelJob, books: Mapping[str, Codebooks] = NO_BOOKS) -> Spec:
    """The spec of the job's store. Tokenizer and teacher are opened, and let go. Raises as `specify`."""
    # A thread that ends takes torch's helpers with it: see `pipeline.inference.Inference`.
    with ThreadPoolExecutor(1) as apart:
        spec = apart.submit(lambda: specify(job, job.views.load(), job.teacher.load(), books)).result()
    free_memory()
    return spec
