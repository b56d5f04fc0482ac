"""Whether a store is true: a random sample of its rows is made again, from the corpus and by the teacher.

It knows where everything comes from: the plan says which part of the corpus a unit is, a row which record and
which view of it. What targets and the teacher's answers have to do with each other is in `comparison`, what
must hold of any target in `targets.plausibility`.

The sample is a function of (seed, store): units with a probability by their rows, then rows of each. Whatever
is found is reported with the place where it was seen first; nothing stops at the first fault but one that
leaves nothing to compare.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.audit.comparison import HeadComparison
from pipeline.audit.findings import CHECKS, Audit, Finding, Result
from pipeline.audit.values import Noise
from pipeline.batching import Item, Window, batches
from pipeline.corpus.base import Record
from pipeline.inference import Answer, Inference
from pipeline.prepare import specify
from pipeline.targets.commit import Commit
from pipeline.targets.errors import (
    CorpusChanged,
    CorpusUnreadable,
    CorruptShard,
    SpecMismatch,
    UserError,
)
from pipeline.targets.plausibility import flaw, pick
from pipeline.targets.rows import Rows
from pipeline.targets.spec import TOKENS, Head, differences
from pipeline.targets.store import Store
from pipeline.targets.unit import Unit
from pipeline.views.base import Rejected, View

if TYPE_CHECKING:
    from pipeline.job import LabelJob
    from pipeline.teachers.base import Output, Teacher, TeacherConfig

IMPORTED = "imported"
"""The kind of teacher that a store's spec names when the targets came from other software."""


def audit(
    job: LabelJob,
    rows: int = 64,
    units: int = 16,
    seed: int = 0,
    tolerance: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Audit:
    """Relabel `rows` rows of at most `units` units of the job's store, and compare.

    tolerance: nats that a single log-probability may be off by; by default by the teacher's type of number.
    progress: called with the rows done and the rows chosen. A store whose teacher is of the kind "imported"
    is labelled from its own inputs, and its spec is not compared with the job's.
    Raises UserError when nothing is committed or the store holds no inputs to label, SpecMismatch when the
    teacher has not the store's heads, StorageError, TeacherError.
    """
    with closing(_Auditor(job, seed, tolerance)) as auditor:
        return auditor.run(rows, units, progress or (lambda done, chosen: None))


@dataclass
class _Unit:
    """A sampled unit. rows: places in its shard, ascending, int64 [n]. strangers: keys that its part of the
    corpus has not there, each with a sentence.
    """

    commit: Commit
    rows: npt.NDArray[np.int64]
    strangers: list[tuple[str, str]] = field(default_factory=list)


class _Auditor:
    """One audit: the job's parts, loaded, and what was found so far."""

    def __init__(self, job: LabelJob, seed: int, tolerance: float | None) -> None:
        self.job, self.seed = job, seed
        self.store = Store.open(job.store.url, job.store.options)
        self.spec = self.store.spec
        self.imported = self.spec.teacher.get("kind") == IMPORTED
        self.checked: Counter[str] = Counter(dict.fromkeys(CHECKS, 0))
        self.findings: list[Finding] = []
        self._seen: dict[tuple[str, str | None, str | None], int] = {}
        self._corpus_keys: dict[str, str] = {}
        self._token_pairs: set[tuple[int, int]] = set()
        self.renderer = None if self.imported else job.views.load()
        self.inference = Inference(job.teacher.load)
        try:
            self._compare_specs(self.inference.teacher)
        except Exception:
            self.close()
            raise
        noise = Noise.of(_exact(job.teacher), self.imported)
        if tolerance is not None:
            noise = Noise(tolerance / 10, tolerance)
        self.heads = [
            HeadComparison(head, self.spec.seed, noise, np.random.default_rng([seed, number]))
            for number, head in enumerate(self.spec.heads)
        ]

    def close(self) -> None:
        """End the teacher's thread."""
        self.inference.close()

    def _compare_specs(self, teacher: Teacher) -> None:
        for head in self.spec.heads:
            output = teacher.outputs.get(head.name)
            if output is None or output.positions != head.positions or not self._has_width(output, head):
                offered = ", ".join(f"{n} ({o.size} {o.positions})" for n, o in teacher.outputs.items())
                raise SpecMismatch(
                    f"the teacher has not the head {head.name} ({head.size} {head.positions}) of "
                    f"{self.store.url}, it offers {offered}: give the teacher that the store is of"
                )
        if self.renderer is None:
            if not self.spec.inputs:
                raise UserError(
                    f"{self.store.url} was imported without inputs, so the teacher has nothing to label: "
                    "import it again with its token ids"
                )
            return
        self.checked["spec"] = 1
        self.findings += [
            Finding("spec", f"the job's and the store's differ in {line}")
            for line in differences(
                specify(self.job, self.renderer, teacher).as_wide_as(self.spec), self.spec
            )
        ]

    def _has_width(self, output: Output, head: Head) -> bool:
        """Whether the teacher has the head's classes, and no more of them than padding."""
        vocabulary = self.spec.vocabulary
        if vocabulary is not None and head.positions == "next_token" and head.codec.of == "logits":
            return vocabulary.size <= head.size <= output.size
        return head.size == output.size

    def run(self, rows: int, units: int, progress: Callable[[int, int], None]) -> Audit:
        chosen = self._choose(rows, units)
        planned = self._planned({item.commit.unit for item in chosen})
        total, done, relabelled = sum(len(item.rows) for item in chosen), 0, 0
        progress(done, total)
        for item in chosen:
            relabelled += self._unit(item, planned.get(item.commit.unit))
            done += len(item.rows)
            progress(done, total)
        self._strangers(chosen)
        self._exchanged_inputs()
        results = self._conclude()
        return Audit(
            self.store.url,
            self.seed,
            len(chosen),
            total,
            relabelled,
            dict(self.checked),
            results,
            tuple(self.findings),
        )

    # The sample

    def _choose(self, rows: int, units: int) -> list[_Unit]:
        """Units without replacement, with a probability by their rows (Efraimidis & Spirakis, 2006), and
        rows of each, as equally as it goes.
        """
        best = heapq.nlargest(
            min(units, rows),
            ((math.log(self._uniform(c.unit)) / c.rows, c.unit, c) for c in self.store.commits() if c.rows),
        )
        if not best:
            raise UserError(f"nothing is labelled in {self.store.url} yet: there is nothing to audit")
        # Ascending, so that what small units do not have is taken of the larger ones.
        commits = sorted((commit for _, _, commit in best), key=lambda commit: (commit.rows, commit.unit))
        chosen, left = [], rows
        for number, commit in enumerate(commits):
            share = min(-(-left // (len(commits) - number)), commit.rows)
            rng = np.random.default_rng([self.seed, *bytes.fromhex(commit.unit)])
            chosen.append(_Unit(commit, np.sort(rng.choice(commit.rows, share, replace=False))))
            left -= share
        return chosen

    def _uniform(self, unit: str) -> float:
        digest = hashlib.blake2b(f"{self.seed} {unit}".encode(), digest_size=8).digest()
        return (int.from_bytes(digest, "little") + 1) / (2**64 + 1)

    def _planned(self, wanted: set[str]) -> dict[str, Unit]:
        if self.imported:
            return {}
        return {name: unit for unit in self.store.planned() if (name := unit.id) in wanted}

    # One unit

    def _unit(self, item: _Unit, unit: Unit | None) -> int:
        """Check a unit's rows; how many of them the teacher saw again."""
        commit = item.commit
        try:
            parts = list(pick(self.store, commit, item.rows))
        except (CorruptShard, SpecMismatch) as error:
            self._find(Finding("shard", str(error), unit=commit.unit))
            return 0
        self.checked["shard"] += 1
        stored = Rows.concatenate(parts)
        sound = self._distributions(commit, stored)
        if self.imported:
            items = [self._own(stored, i) for i in sound]
        else:
            if unit is None:
                self._find(Finding("inputs", "is committed and is in no plan of the store", unit=commit.unit))
                return 0
            try:
                items = list(self._rendered(item, unit, stored, sound))
            except (CorpusChanged, CorpusUnreadable) as error:
                self._find(Finding("inputs", str(error), unit=commit.unit))
                return 0
        self._label(commit, stored, items)
        return len(items)

    def _distributions(self, commit: Commit, stored: Rows) -> list[int]:
        """Rows whose targets are distributions, in all heads."""
        sound = []
        for i in range(len(stored)):
            row, good = stored.take(np.array([i])), True
            for head in self.spec.heads:
                try:
                    wrong = flaw(row.decode(head.name))
                except (ValueError, IndexError) as error:
                    wrong = (0, f"it does not decode: {error}")
                if wrong is not None:
                    good = False
                    self._at("distribution", commit, row, head, wrong[0], wrong[1])
                self.checked["distribution"] += int(row.counts(head)[0])
            if good:
                sound.append(i)
        return sound

    def _rendered(
        self, item: _Unit, unit: Unit, stored: Rows, sound: Sequence[int]
    ) -> Iterator[tuple[int, Item]]:
        """The views of the corpus that the stored rows should be of, where they are."""
        wanted: dict[int, list[int]] = {}
        for i in range(len(stored)):
            wanted.setdefault(int(stored.row[i]), []).append(i)
        assert self.renderer is not None
        last, good = max(wanted), set(sound)
        records = self.job.corpus.read(unit)
        with closing(records):  # type: ignore[type-var]
            for record in records:
                self._corpus_keys[record.key] = unit.id
                for i in wanted.pop(record.row, ()):
                    self.checked["inputs"] += 1
                    found = self._same(item, stored, i, record)
                    if found is not None and i in good:
                        yield i, found
                if record.row >= last:
                    break
        for i in (i for rows in wanted.values() for i in rows):
            item.strangers.append((stored.keys[i], f"the unit has no record {int(stored.row[i])}"))

    def _same(self, item: _Unit, stored: Rows, i: int, record: Any) -> Item | None:
        """The view of a record that a stored row is of; None, with a finding, if it is not."""
        key, number, views = stored.keys[i], int(stored.view[i]), int(stored.views[i])
        if record.key != key:
            item.strangers.append((key, f"the corpus has the record {record.key!r} in its place"))
            return None
        reason = None
        rendered: list[View] = []
        if not isinstance(record, Record):
            reason = f"the corpus gives no such record any more: {record.reason}"
        else:
            assert self.renderer is not None
            try:
                rendered = self.renderer.render(record)
            except Rejected as error:
                reason = f"the record has no view any more: {error.reason}"
        if reason is None and len(rendered) != views:
            reason = f"the record has {len(rendered)} views, and {views} are stored of it"
        if reason is None:
            reason = self._unlike(stored, i, rendered[number])
        if reason is not None:
            self._at("inputs", item.commit, stored.take(np.array([i])), None, None, reason)
            return None
        return Item(key, int(stored.row[i]), number, views, rendered[number])

    def _unlike(self, stored: Rows, i: int, view: View) -> str | None:
        """What of the stored inputs is not what the view has."""
        for name, array in stored.inputs.items():
            ours, theirs = np.asarray(array[i]), view.inputs.get(name)
            if theirs is None:
                return f"its view has no input {name!r}"
            if ours.shape != theirs.shape:
                return f"its {name} have shape {ours.shape}, and the corpus gives {theirs.shape}"
            if (wrong := np.argwhere(ours != theirs)).size:
                place = tuple(int(x) for x in wrong[0])
                if name == TOKENS:
                    there = ours != theirs
                    self._token_pairs.update(zip(ours[there].tolist(), theirs[there].tolist(), strict=True))
                at = place[0] if len(place) == 1 else place
                return f"its {name} hold {ours[place]} at {at}, and the corpus gives {theirs[place]}"
        return None

    def _own(self, stored: Rows, i: int) -> tuple[int, Item]:
        inputs = {name: np.asarray(array[i]) for name, array in stored.inputs.items()}
        size = max((len(inputs[d.name]) for d in self.spec.inputs if d.varies), default=1)
        view = View(inputs, size)
        return i, Item(stored.keys[i], int(stored.row[i]), int(stored.view[i]), int(stored.views[i]), view)

    def _label(self, commit: Commit, stored: Rows, items: Sequence[tuple[int, Item]]) -> None:
        inputs = self.spec.inputs if self.renderer is None else self.renderer.inputs
        window = Window([item for _, item in items], [], 0)
        for part in batches(window, inputs, self.job.label.batching.budget):
            for answer in self.inference(part):
                if isinstance(answer, Answer):
                    places = [items[p][0] for p in answer.part.positions.tolist()]
                    self.inference.after(answer, partial(self._compare, commit, stored, places))
                else:
                    self._find(
                        Finding(
                            "values",
                            f"the teacher fails on it now: {answer.reason}",
                            unit=commit.unit,
                            key=answer.key,
                            view=answer.view,
                        )
                    )

    def _compare(self, commit: Commit, stored: Rows, places: Sequence[int], answer: Answer) -> None:
        for comparison in self.heads:
            head = comparison.head
            logits = answer.of(head)
            sequence = head.positions == "next_token"
            length = logits.shape[1] if sequence else 1
            for view, i in enumerate(places):
                row = stored.take(np.array([i]))
                inputs = answer.part.items[view].content.inputs
                tokens = inputs[TOKENS].astype(np.int64) if sequence else None
                try:
                    for found in comparison.row(logits, view * length, row, tokens):
                        self._at("values", commit, row, head, found.position, found.reason)
                except ValueError as error:
                    reason = f"what the teacher says now cannot be encoded: {error}"
                    self._at("values", commit, row, head, None, reason)
                self.checked["values"] += int(row.counts(head)[0])

    # Findings

    def _find(self, finding: Finding) -> None:
        """Keep it, once for each check, unit and head; others of the same kind are counted."""
        kind = (finding.check, finding.unit, finding.head)
        at = self._seen.setdefault(kind, len(self.findings))
        if at == len(self.findings):
            self.findings.append(finding)
        else:
            self.findings[at] = replace(self.findings[at], more=self.findings[at].more + 1)

    def _at(
        self, check: str, commit: Commit, row: Rows, head: Head | None, position: int | None, reason: str
    ) -> None:
        """A finding about a single row. position: of a target; not said of a head with one target a row."""
        sequence = head is not None and head.positions == "next_token"
        self._find(
            Finding(
                check,
                reason,
                unit=commit.unit,
                key=row.keys[0],
                view=int(row.view[0]),
                position=position if sequence else None,
                head=head.name if head is not None else None,
            )
        )

    def _exchanged_inputs(self) -> None:
        """Two token ids that stand for each other everywhere are another tokenizer's."""
        pairs = set(self._token_pairs)
        if len(pairs) == 2 and len({frozenset(pair) for pair in pairs}) == 1:
            a, b = sorted(next(iter(pairs)))
            reason = f"ids {a} and {b} are exchanged in the stored tokens: they come from another tokenizer"
        elif len(pairs) == 1:
            ((a, b),) = pairs
            reason = (
                f"id {a} stands where the corpus gives {b}: the stored tokens come from another tokenizer"
            )
        elif pairs:
            reason = f"{len(pairs)} token ids differ: the stored tokens come from another tokenizer or text"
        else:
            return
        self._find(Finding("inputs", reason))

    def _strangers(self, chosen: Sequence[_Unit]) -> None:
        """Rows that are not of their unit, with the unit that they are of, if the sample has it."""
        for item in chosen:
            for key, reason in sorted(item.strangers, key=lambda found: found[0] not in self._corpus_keys):
                if (owner := self._corpus_keys.get(key)) is not None:
                    reason += f"; it is a record of unit {owner[:12]}: the shards of the two are exchanged"
                self._find(Finding("inputs", reason, unit=item.commit.unit, key=key))

    def _conclude(self) -> list[Result]:
        """What only all rows together show."""
        tests = sum(comparison.tests for comparison in self.heads)
        results = []
        for comparison in self.heads:
            name, explained = comparison.head.name, False
            shift = comparison.shift(tests)
            self.checked["place"] += shift.groups
            if shift.verdict is not None:
                neighbour, better = (
                    ("previous", shift.before) if shift.verdict == "before" else ("next", shift.after)
                )
                explained = True
                self._find(
                    Finding(
                        "place",
                        f"targets fit the {neighbour} token better than their own: shifted by one (mean "
                        f"log-probability {better:.3f} against {shift.own:.3f} nats)",
                        head=name,
                    )
                )
            biases = comparison.averages.biases(tests)
            self.checked["bias"] += comparison.targets if biases else 0
            if (truncated := comparison.averages.truncated(tests)) is not None:
                explained = True
                self._find(Finding("bias", truncated, head=name))
            if (ids := comparison.exchanged()) is not None:
                explained = True
                self._find(
                    Finding(
                        "values", f"classes {ids[0]} and {ids[1]} have each other's probability", head=name
                    )
                )
            wrong = [bias for bias in biases if bias.found]
            if wrong and not explained:
                most = max(wrong, key=lambda bias: bias.z)
                self._find(
                    Finding(
                        "bias",
                        f'biased: "{most.name}" is off by {most.mean:+.4g} a target, {most.z:.1f} standard '
                        f"deviations where {most.limit:.1f} are allowed",
                        head=name,
                    )
                )
            if not explained and comparison.differing > 0.5 * comparison.targets:
                self._find(
                    Finding(
                        "values",
                        f"{comparison.differing} of {comparison.targets} targets are not what this teacher "
                        "says: another teacher, or other weights",
                        head=name,
                    )
                )
            results.append(
                Result(
                    name,
                    comparison.targets,
                    comparison.equal,
                    comparison.differing,
                    comparison.worst,
                    shift if shift.groups else None,
                    biases,
                )
            )
        return results


def _exact(teacher: TeacherConfig) -> bool:
    """Whether a teacher computes in float32 or better; an ensemble does if all its members do."""
    members = getattr(teacher, "members", None)
    if members is not None:
        return all(map(_exact, members))
    return getattr(teacher, "dtype", "float32") in ("float32", "float64")
