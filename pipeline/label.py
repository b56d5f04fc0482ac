"""One unit, from the corpus to its commit record, as a stream of overlapping stages.

reader -> views -> batches -> teacher -> encode -> writer, each in a thread of its own. It knows the job and
the store, and nothing of who hands out units or where.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from pipeline.batching import Part, Rendered, Window, batches, windows
from pipeline.budget import fastest
from pipeline.codebooks import books_of
from pipeline.corpus.base import Read
from pipeline.declaration import specify
from pipeline.encoding import Labelled, encode
from pipeline.inference import Answer, Inference
from pipeline.prepare import prepare
from pipeline.profile import Recorder
from pipeline.rendering import NOTHING, Feed, fed, records_of, rendered
from pipeline.statistics import Means
from pipeline.stream import prefetch
from pipeline.targets.commit import Commit
from pipeline.targets.errors import SpecMismatch, TooManyQuarantined
from pipeline.targets.rows import Rows
from pipeline.targets.spec import differences
from pipeline.targets.store import Store
from pipeline.targets.unit import Quarantined, Unit
from pipeline.teachers.packing import load_packing

if TYPE_CHECKING:
    from pipeline.job import LabelJob

Due = Collection[tuple[int, int | None]]
"""Views: a record's row in the unit and the view's number, None for all views of the record."""

EVIDENCE = 100
"""Failures of a unit without one success that are no bad luck."""


class Cancelled(Exception):
    """The unit was left unfinished because `Labeller.cancel` was called."""


class Labeller:
    """What labels units: renderer, teacher and store of a job, loaded once. Several threads may use it."""

    def __init__(self, job: LabelJob) -> None:
        """Raises SpecMismatch when the store was made with another teacher, tokenizer or setting."""
        self.job = job
        self.store = Store.open(job.store.url, job.store.options)
        self._renderer = job.views.load()
        self._inference = Inference(partial(load_packing, job.teacher, job.label.batching.packing))
        declared = specify(job, self._renderer, self._inference.teacher, books_of(self.store.spec))
        spec = declared.as_wide_as(self.store.spec)
        if spec.fingerprint != self.store.spec.fingerprint:
            what = "; ".join(differences(spec, self.store.spec))
            raise SpecMismatch(f"this replica's model or settings are not those of {self.store.url}: {what}")
        self._cancelled = threading.Event()
        self._finding, self._found = threading.Lock(), not job.label.batching.find
        self._budget = job.label.batching.largest(self._renderer.inputs)
        self.recorder = Recorder() if job.label.profile else None
        """What the time is spent on, if the job wants to know."""

    def cancel(self) -> None:
        """Make every `label` in progress end at its next batch with Cancelled, its unit uncommitted."""
        self._cancelled.set()

    def close(self) -> None:
        """Label no more, and wait for the teacher to finish its batch."""
        self.cancel()
        self._inference.close()

    def label(self, unit: Unit, skip: Mapping[int, str] = NOTHING, feed: Feed | None = None) -> Commit:
        """Label a unit and commit it: its commit record, or that of a faster attempt.

        skip: rows that go to quarantine as "killed" without being labelled, each with the reason.
        feed: who reads and renders it instead; knows of nothing to skip. What it leaves undone is done here.
        Raises CorpusChanged, CorpusUnreadable, StorageError, TeacherError; and TooManyQuarantined when the
        teacher gave no target for any of EVIDENCE views or more, which is no unit's fault. Then nothing of
        the unit is committed.
        """
        started, records, filtered, seconds, device = time.time(), 0, 0, 0.0, ""
        means = Means()
        last_failure: Quarantined | None = None
        failures = rows = 0
        with (
            self.store.writer(unit.id) as writer,
            closing(self.windows(*self._rendered(unit, skip, feed))) as results,
        ):
            for window, parts, unlabelled in results:
                records += window.records
                filtered += window.filtered
                if parts:
                    order = np.argsort(np.concatenate([part.positions for part in parts]))
                    with self._working("write"):
                        writer.write(Rows.concatenate([part.rows for part in parts]).take(order))
                for part in parts:
                    if self.recorder is not None:
                        self.recorder.worked("teacher", part.began, part.began + part.seconds)
                    rows += len(part.rows)
                    seconds += part.seconds
                    device = part.device
                    means.merge(part.means)
                for item in unlabelled:
                    last_failure, failures = item, failures + 1
                for item in sorted([*window.quarantined, *unlabelled], key=lambda q: (q.row, q.view or 0)):
                    writer.quarantine(item)
            if last_failure is not None and not rows and failures >= EVIDENCE:
                raise TooManyQuarantined(
                    f"the teacher gave no target for any of {failures} views, for example of "
                    f"{last_failure.key}: {last_failure.reason}; nothing of unit {unit.id} is committed"
                )
            with self._working("write"):
                return writer.commit(
                    records=records,
                    filtered=filtered,
                    statistics=means.values(),
                    histograms=means.histograms(),
                    started=started,
                    forward_seconds=seconds,
                    device=device,
                )

    @contextmanager
    def _working(self, stage: str) -> Iterator[None]:
        """While entered, this thread works for the stage."""
        begin = time.time()
        try:
            yield
        finally:
            if self.recorder is not None:
                self.recorder.worked(stage, begin, time.time())

    def rehearse(self, unit: Unit, rows: range, skip: Mapping[int, str] = NOTHING) -> int:
        """Label some records of a unit and keep nothing of it; how many records the unit has.

        Whether that ends well is what it is for.
        """
        count = 0

        def some() -> Iterator[Read]:
            nonlocal count
            for record in records_of(self.job.corpus, unit, skip):
                count += 1
                if record.row in rows:
                    yield record

        with closing(self.windows(self.render(some()))) as results:
            for _ in results:
                pass
        return count

    @property
    def reach(self) -> int:
        """How many records back a view may be mixed with another."""
        return self._renderer.reach

    def _rendered(
        self, unit: Unit, skip: Mapping[int, str], feed: Feed | None
    ) -> tuple[Iterable[Sequence[Rendered]], str]:
        """A unit's views, and the stage that has to do with them here."""

        def alone() -> Iterable[Sequence[Rendered]]:
            return self.render(records_of(self.job.corpus, unit, skip))

        if feed is None:
            return alone(), "views"
        depth, watch = self.job.label.batching.prefetch, self.recorder
        spent = None if watch is None else watch.add
        return fed(feed(unit), lambda: prefetch(alone(), depth, "views", watch), spent), "receive"

    def render(self, records: Iterable[Read]) -> Iterable[Sequence[Rendered]]:
        """The views of records, rendered here."""
        batching = self.job.label.batching
        return rendered(records, self._renderer, batching.threads, batching.prefetch, self.recorder)

    def windows(
        self, groups: Iterable[Sequence[Rendered]], stage: str = "views", due: Due | None = None
    ) -> Generator[tuple[Window, list[Labelled], list[Quarantined]], None, None]:
        """Each window with its labelled rows and the views that the teacher could not label.

        stage: what making the groups is. due: the views that are to be labelled, by default all.
        """
        depth, watch = self.job.label.batching.prefetch, self.recorder
        found = windows(groups, self.job.label.batching.content(self._renderer.inputs))
        wanted = prefetch(found if due is None else _only(found, due), depth, stage, watch)
        collated = prefetch(self._batches(wanted), depth, "batch", watch)
        answered = prefetch(self._answers(collated), 1)
        encoded = prefetch(self._encode(answered), depth)
        with closing(encoded):
            window: Window | None = None
            parts: list[Labelled] = []
            unlabelled: list[Quarantined] = []
            for item in encoded:
                if isinstance(item, Labelled):
                    parts.append(item)
                elif isinstance(item, Quarantined):
                    unlabelled.append(item)
                else:
                    if window is not None:
                        yield window, parts, unlabelled
                    window, parts, unlabelled = item, [], []
            if window is not None:
                yield window, parts, unlabelled

    def _batches(self, rendered: Iterable[Window]) -> Iterator[Window | Part]:
        """Each window, and then its batches."""
        for window in rendered:
            yield window
            packing = self.job.label.batching.packing
            yield from batches(window, self._renderer.inputs, self._budget_with(window), packing)

    def _budget_with(self, window: Window) -> int:
        """The batches' budget, which is found on the first window if the job says so."""
        with self._finding:
            if not self._found and window.items:
                packing = self.job.label.batching.packing
                self._budget = fastest(self._inference, window, self._renderer.inputs, self._budget, packing)
                self._found = True
            return self._budget

    def _answers(self, collated: Iterable[Window | Part]) -> Iterator[Window | Answer | Quarantined]:
        for item in collated:
            if self._cancelled.is_set():
                raise Cancelled
            if isinstance(item, Window):
                yield item
            else:
                yield from self._inference(item)

    def _encode(
        self, answered: Iterable[Window | Answer | Quarantined]
    ) -> Iterator[Window | Labelled | Quarantined]:
        for item in answered:
            if isinstance(item, Answer):
                yield from self._inference.after(item, self._targets)
            else:
                yield item

    def _targets(self, answer: Answer) -> list[Labelled | Quarantined]:
        if self.recorder is not None:
            answer.seconds()  # an accelerator may still compute it
        with self._working("encode"):
            return list(encode(answer, self.store.spec))


def _only(rendered: Iterable[Window], due: Due) -> Iterator[Window]:
    """Windows with the views alone that are due."""
    for window in rendered:
        items = [item for item in window.items if (item.row, item.view) in due or (item.row, None) in due]
        yield replace(window, items=items)


__all__ = ["Cancelled", "Labeller", "prepare"]
