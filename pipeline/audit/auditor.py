"""Whether a store is true: a random sample of its rows is made again, and the teacher asked again.

It knows the order of an audit: a sample (`sample`), its inputs (`inputs`), what must hold of any target
(`targets.plausibility`), each target against the teacher's answer (`comparison`), and all of them together
(`conclusion`). Whatever is found is reported with the place where it was seen first; nothing stops at the
first fault but one that leaves nothing to compare.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from pipeline.audit.comparison import HeadComparison
from pipeline.audit.conclusion import conclude
from pipeline.audit.findings import Audit, Finding, Findings
from pipeline.audit.inputs import CorpusInputs, Inputs, StoredInputs
from pipeline.audit.sample import Sample, choose
from pipeline.audit.values import Noise
from pipeline.batching import Item, Window, batches
from pipeline.codebooks import books_of
from pipeline.declaration import specify
from pipeline.inference import Answer, Inference
from pipeline.job import Batching
from pipeline.targets.commit import Commit
from pipeline.targets.errors import CorruptShard, SpecMismatch, UserError
from pipeline.targets.plausibility import flaw, pick
from pipeline.targets.rows import Rows
from pipeline.targets.spec import Head, Spec, differences
from pipeline.targets.store import Store

if TYPE_CHECKING:
    from pipeline.job import LabelJob
    from pipeline.teachers.base import Output, Teacher, TeacherConfig

IMPORTED = "imported"
"""The kind of teacher that a store's spec names when the targets came from other software."""

BATCHING = Batching()
"""How rows are batched where no job says."""

Progress = Callable[[int, int], None]
"""Told the rows done and the rows chosen."""


def audit(
    job: LabelJob,
    rows: int = 64,
    units: int = 16,
    seed: int = 0,
    tolerance: float | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Relabel `rows` rows of at most `units` units of the job's store, and compare.

    tolerance: nats that a single log-probability may be off by; by default by the teacher's type of number.
    An imported store is audited as `audit_imported` does.
    Raises UserError when nothing is committed, SpecMismatch when the teacher has not the store's heads,
    StorageError, TeacherError.
    """
    store, batching = Store.open(job.store.url, job.store.options), job.label.batching
    if store.spec.teacher.get("kind") == IMPORTED:
        return audit_imported(store, job.teacher, rows, units, seed, tolerance, progress, batching)
    with closing(Inference(job.teacher.load)) as inference:
        renderer, findings = job.views.load(), Findings()
        _check_heads(store, inference.teacher)
        declared = specify(job, renderer, inference.teacher, books_of(store.spec)).as_wide_as(store.spec)
        findings.checked["spec"] = 1
        for line in differences(declared, store.spec):
            findings.add(Finding("spec", f"the job's and the store's differ in {line}"))
        inputs = CorpusInputs(store, job.corpus, renderer, findings)
        noise = _noise(job.teacher, False, tolerance)
        if any(output.likeliest is not None for output in inference.teacher.outputs.values()):
            noise = replace(noise, padded=True)  # a class that no token names may have left its place empty
        auditor = _Auditor(store, inputs, inference, batching, noise, seed, findings)
        return auditor.run(rows, units, progress)


def audit_imported(
    store: Store,
    teacher: TeacherConfig,
    rows: int = 64,
    units: int = 16,
    seed: int = 0,
    tolerance: float | None = None,
    progress: Progress | None = None,
    batching: Batching = BATCHING,
) -> Audit:
    """Relabel rows of an imported store from its own inputs; there is no corpus and no spec to compare.

    batching: how large batches are. Raises as `audit`, and UserError when the store was not
    imported, or was without inputs.
    """
    if store.spec.teacher.get("kind") != IMPORTED:
        raise UserError(
            f"{store.url} was labelled and not imported: audit it with its job file, so that its inputs are "
            "made again too"
        )
    with closing(Inference(teacher.load)) as inference:
        _check_heads(store, inference.teacher)
        inputs, noise = StoredInputs(store), _noise(teacher, True, tolerance)
        auditor = _Auditor(store, inputs, inference, batching, noise, seed, Findings())
        return auditor.run(rows, units, progress)


def _check_heads(store: Store, teacher: Teacher) -> None:
    """Raises SpecMismatch. What the teacher has more classes than an imported head is padding too."""
    for head in store.spec.heads:
        output = teacher.outputs.get(head.name)
        if output is None or output.positions != head.positions or not _has_width(output, head, store.spec):
            offered = ", ".join(f"{n} ({o.size} {o.positions})" for n, o in teacher.outputs.items())
            raise SpecMismatch(
                f"the teacher has not the head {head.name} ({head.size} {head.positions}) of {store.url}, it "
                f"offers {offered}: give the teacher that the store is of"
            )


def _has_width(output: Output, head: Head, spec: Spec) -> bool:
    """Whether the teacher has the head's classes, and no more of them than padding."""
    tokens = head.positions == "next_token" and head.codec.of == "logits"
    if tokens and (spec.vocabulary is not None or spec.teacher.get("kind") == IMPORTED):
        return head.size <= output.size
    return head.size == output.size


def _noise(teacher: TeacherConfig, imported: bool, tolerance: float | None) -> Noise:
    if tolerance is not None:
        return Noise(tolerance / 10, tolerance, padded=imported)
    return Noise.of(_exact(teacher), imported)


def _exact(teacher: TeacherConfig) -> bool:
    """Whether a teacher computes in float32 or better; an ensemble does if all its members do."""
    members = getattr(teacher, "members", None)
    if members is not None:
        return all(map(_exact, members))
    return getattr(teacher, "dtype", "float32") in ("float32", "float64")


class _Auditor:
    """One audit: what it takes, and what was found so far."""

    def __init__(
        self,
        store: Store,
        inputs: Inputs,
        inference: Inference,
        batching: Batching,
        noise: Noise,
        seed: int,
        findings: Findings,
    ) -> None:
        self._store, self._inputs, self._inference, self._batching = store, inputs, inference, batching
        self._seed, self._findings = seed, findings
        self._heads = [
            HeadComparison(head, store.spec.seed, noise, np.random.default_rng([seed, number]))
            for number, head in enumerate(store.spec.heads)
        ]

    def run(self, rows: int, units: int, progress: Progress | None) -> Audit:
        samples = choose(self._store, rows, units, self._seed)
        total, done, relabelled = sum(len(sample.rows) for sample in samples), 0, 0
        self._inputs.plan(samples)
        for sample in samples:
            if progress is not None:
                progress(done, total)
            relabelled += self._unit(sample)
            done += len(sample.rows)
        if progress is not None:
            progress(done, total)
        self._inputs.conclude()
        results = conclude(self._heads, self._findings)
        return Audit(
            self._store.url,
            self._seed,
            len(samples),
            total,
            relabelled,
            dict(self._findings.checked),
            results,
            tuple(self._findings),
        )

    def _unit(self, sample: Sample) -> int:
        """Check a unit's rows; how many of them the teacher saw again."""
        commit = sample.commit
        try:
            parts = list(pick(self._store, commit, sample.rows))
        except (CorruptShard, SpecMismatch) as error:
            self._findings.add(Finding("shard", str(error), unit=commit.unit))
            return 0
        self._findings.checked["shard"] += 1
        stored = Rows.concatenate(parts)
        items = list(self._inputs.of(sample, stored, self._sound(commit, stored)))
        self._label(commit, stored, items)
        return len(items)

    def _sound(self, commit: Commit, stored: Rows) -> list[int]:
        """Rows whose targets are distributions, in all heads."""
        sound = []
        for i in range(len(stored)):
            row, good = stored.take(np.array([i])), True
            for head in self._store.spec.heads:
                wrong = _flaw(row, head)
                if wrong is not None:
                    good = False
                    self._findings.at("distribution", commit, row, head, wrong[0], wrong[1])
                self._findings.checked["distribution"] += int(row.counts(head)[0])
            if good:
                sound.append(i)
        return sound

    def _label(self, commit: Commit, stored: Rows, items: Sequence[tuple[int, Item]]) -> None:
        window = Window([item for _, item in items], [], 0)
        declared = self._inputs.declared
        for part in batches(window, declared, self._batching.largest(declared)):
            for answer in self._inference(part):
                if isinstance(answer, Answer):
                    places = [items[p][0] for p in answer.part.positions.tolist()]
                    self._inference.after(answer, partial(self._compare, commit, stored, places))
                else:
                    reason = f"the teacher fails on it now: {answer.reason}"
                    self._findings.add(
                        Finding("values", reason, unit=commit.unit, key=answer.key, view=answer.view)
                    )

    def _compare(self, commit: Commit, stored: Rows, places: Sequence[int], answer: Answer) -> None:
        for comparison in self._heads:
            head = comparison.head
            logits = answer.of(head)
            length = logits.shape[1] if head.positions == "next_token" else 1
            for view, i in enumerate(places):
                row = stored.take(np.array([i]))
                try:
                    for found in comparison.row(logits, view * length, row):
                        self._findings.at("values", commit, row, head, found.position, found.reason)
                except ValueError as error:
                    reason = f"what the teacher says now cannot be encoded: {error}"
                    self._findings.at("values", commit, row, head, None, reason)
                self._findings.checked["values"] += int(row.counts(head)[0])


def _flaw(row: Rows, head: Head) -> tuple[int, str] | None:
    """The first target of a single row that is no distribution, and why."""
    try:
        return flaw(row.decode(head.name))
    except (ValueError, IndexError) as error:
        return 0, f"it does not decode: {error}"
