"""A pilot: a few thousand targets of the corpus, answered once by the teacher, encoded by many codecs.

It knows a job's corpus, views and teacher, and what a codec's targets cost and keep. It writes nothing.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
import torch

from pipeline.batching import Item, collate, windows
from pipeline.encoding import Labelled, encode
from pipeline.fidelity import Comparison, Fidelity, Floats, Reference, estimate
from pipeline.inference import Answer, Inference
from pipeline.prepare import specify
from pipeline.stream import chunks
from pipeline.targets.codecs import Codec, Dense, Threshold
from pipeline.targets.containers import parquet
from pipeline.targets.decoded import DenseTargets, Targets
from pipeline.targets.errors import ConfigError, UserError
from pipeline.targets.rows import Rows
from pipeline.targets.spec import Head, Spec
from pipeline.targets.unit import Unit

if TYPE_CHECKING:
    from pipeline.job import LabelJob

LISTED, SAMPLED = 4096, 16
"""Units at the corpus's beginning among which a pilot picks, evenly, and how many it picks."""

ELEMENTS = 2**24
"""Logits of an answer, unless a single view has more: they are in memory at once."""

SMALLEST, LARGEST, HALVINGS = 1 / 4096, 0.5, 10
"""Thresholds that one is searched between, and how often the interval is halved, on a logarithmic scale."""


@dataclass(frozen=True)
class Point:
    """A codec on a pilot's targets.

    bytes_per_target: of a Parquet shard's columns, keys and inputs among them; head_bytes: of the head's
    alone. entries, captured_mass: as the codec counts them.
    """

    codec: Codec
    bytes_per_target: float
    head_bytes: float
    entries: float
    captured_mass: float
    fidelity: Fidelity


class Pilot:
    """What the teacher answers to some of a job's corpus.

    targets: how many.
    """

    def __init__(self, job: LabelJob, targets: int, head: str | None = None) -> None:
        """head: the one to size, the only one if None.

        Raises what preparing a job raises, ConfigError for a head that is not there or not named, UserError
        when the corpus's beginning has no target.
        """
        self._inference = Inference(job.teacher.load)
        self._renderer, self._corpus = job.views.load(), job.corpus
        spec = specify(job, self._renderer, self._inference.teacher)
        names = [found.name for found in spec.heads]
        if head not in names and (head is not None or len(names) > 1):
            raise ConfigError(
                f"which head is to be sized? The job keeps {', '.join(names)}: name one of them"
            )
        self.head: Head = next(found for found in spec.heads if head in (None, found.name))
        self._spec: Spec = replace(spec, heads=(self.head,))
        self._answers: list[Answer] = []
        self._budget, self.targets = job.label.batching.budget, 0
        units = list(islice(job.corpus.units(), LISTED))
        places = np.unique(np.linspace(0, len(units) - 1, SAMPLED).astype(int))
        # Every second one first: a whole view is asked of each, so that the targets may be there early.
        self._units = [units[place] for place in (*places[::2], *places[1::2])]
        for number, unit in enumerate(self._units):
            if (wanted := targets - self.targets) > 0:
                self._ask(unit, -(-wanted // (len(self._units) - number)))
        if not self.targets:
            raise UserError(f"the first {len(units)} units of the corpus have no record with a target")
        total = sum(self._p(answer).sum(axis=0, dtype=np.float64) for answer in self._answers)
        self._mean = np.asarray(total) / self.targets
        self._sums = [Reference.of(self._p(answer), self._mean) for answer in self._answers]

    def measure(self, codec: Codec) -> Point:
        """What the codec costs and keeps. Raises ValueError when it cannot hold the head."""
        comparison, parts = Comparison(self._mean), []
        for answer, sums in zip(self._answers, self._sums, strict=True):
            parts.append(self._rows(answer, codec))
            comparison.add(self._p(answer), sums, parts[-1].decode(self.head.name))
        rows = Rows.concatenate(parts)
        statistics = codec.statistics(rows.heads[self.head.name], self.head.size)
        return Point(
            codec,
            _stored_bytes(rows) / self.targets,
            _stored_bytes(rows, f"{self.head.name}.") / self.targets,
            statistics["entries"],
            statistics["captured_mass"],
            comparison.fidelity(),
        )

    def compare(self, encode: Callable[[torch.Tensor], Targets]) -> Fidelity:
        """What any function from logits, float32 [n, V], to targets keeps."""
        comparison = Comparison(self._mean)
        for answer, sums in zip(self._answers, self._sums, strict=True):
            dense = self._rows(answer, Dense("float32")).decode(self.head.name)
            assert isinstance(dense, DenseTargets)
            comparison.add(estimate(dense, self._mean), sums, encode(torch.from_numpy(dense.logits)))
        return comparison.fidelity()

    def bytes_per_target(self, codec: Codec) -> float:
        """What it costs, without a look at what it keeps."""
        return _stored_bytes(self.rows(codec)) / self.targets

    def rows(self, codec: Codec) -> Rows:
        """All targets, as a shard holds them."""
        return Rows.concatenate([self._rows(answer, codec) for answer in self._answers])

    def threshold_of_bytes(self, most: float) -> Threshold:
        """The smallest threshold whose targets take at most so many bytes. Raises UserError if none does."""
        least = self.bytes_per_target(Threshold(LARGEST))
        if least > most:
            raise UserError(
                f"{most:g} bytes a target cannot be had: the largest threshold takes {least:.1f}, keys and "
                "inputs among them: allow more"
            )
        return _largest(lambda threshold: self.bytes_per_target(Threshold(threshold)) > most, above=True)

    def threshold_of_error(self, most: float) -> Threshold:
        """The largest threshold of at most that squared error. Raises UserError if none is as good."""
        best = self.measure(Threshold(SMALLEST)).fidelity.error
        if best > most:
            raise UserError(
                f"a squared error of {most:g} cannot be had: the smallest threshold has {best:.2g}: allow "
                "more, or take the dense codec"
            )
        return _largest(
            lambda threshold: self.measure(Threshold(threshold)).fidelity.error <= most, above=False
        )

    def targets_per_byte(self) -> float:
        """Targets that a byte of the corpus has, judged by one of the pilot's units, which is read whole."""
        unit = self._units[len(self._units) // 4]
        found = 0.0
        for window in windows(chunks(self._corpus.read(unit), 16), self._renderer, 256):
            found += sum(self._count(item.content.size) for item in window.items)
        return float(found / max(unit.size_bytes, 1))

    def seconds_per_target(self) -> float:
        """Of the teacher, in a batch as large as labelling makes them, once it is warm."""
        items: list[Item] = []
        for answer in self._answers:
            items += answer.part.items
            if sum(item.content.size for item in items) >= self._budget:
                break
        part = collate(items, np.arange(len(items)), self._renderer.inputs)
        for _ in range(2):
            answers = [found for found in self._inference(part) if isinstance(found, Answer)]
        targets = sum(
            self._count(length) for found in answers for length in found.part.batch.lengths.tolist()
        )
        return sum(found.seconds() for found in answers) / targets

    def _count(self, length: int) -> int:
        return length - 1 if self.head.positions == "next_token" else 1

    def _ask(self, unit: Unit, wanted: int) -> None:
        """Answers to the unit's first views, until there are so many targets."""
        most = 1 if self.head.positions == "next_token" else max(1, ELEMENTS // self.head.size)
        before = self.targets
        for window in windows(chunks(self._corpus.read(unit), 1), self._renderer, min(most, wanted)):
            if window.items:
                part = collate(window.items, np.arange(len(window.items)), self._renderer.inputs)
                for answer in self._inference(part):
                    # What is not finite is no target: the first encoding tells.
                    if isinstance(answer, Answer) and self._labelled(answer, Dense("float32")) is not None:
                        self._answers.append(answer)
                        self.targets += sum(map(self._count, answer.part.batch.lengths.tolist()))
            if self.targets - before >= wanted:
                return

    def _p(self, answer: Answer) -> Floats:
        """The teacher's distributions of an answer's targets, [n, V]."""
        return estimate(self._rows(answer, Dense("float32")).decode(self.head.name), np.zeros(0))

    def _rows(self, answer: Answer, codec: Codec) -> Rows:
        labelled = self._labelled(answer, codec)
        assert labelled is not None  # answers that are not are not kept
        return labelled.rows

    def _labelled(self, answer: Answer, codec: Codec) -> Labelled | None:
        """The answer's rows; None when one of its views is not finite."""
        spec = replace(self._spec, heads=(replace(self.head, codec=codec),))
        outcomes = self._inference.after(answer, lambda given: list(encode(given, spec)))
        return outcomes[0] if len(outcomes) == 1 and isinstance(outcomes[0], Labelled) else None


def _stored_bytes(rows: Rows, prefix: str = "") -> int:
    """Of the columns of a Parquet shard with these rows, or of those whose names begin so."""
    with io.BytesIO() as sink:
        writer = parquet.Writer(sink, rows.spec)
        writer.write(rows.to_arrow())
        writer.close()
        metadata = pq.ParquetFile(sink).metadata
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        columns = [group.column(number) for group in groups for number in range(metadata.num_columns)]
        return sum(c.total_compressed_size for c in columns if c.path_in_schema.startswith(prefix))


def _largest(holds: Callable[[float], bool], above: bool) -> Threshold:
    """Where `holds`, true for small thresholds, turns false: the last one tried before, or (above) after."""
    low, high = math.log(SMALLEST), math.log(LARGEST)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(math.exp(middle)) else (low, middle)
    return Threshold(min(max(math.exp(high if above else low), SMALLEST), LARGEST))
