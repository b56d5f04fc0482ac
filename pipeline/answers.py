"""Some of a job's corpus, answered once by the teacher, to be encoded by many codecs.

It knows corpus, views, teacher and what encoded targets weigh. What a codec keeps of them it does not know,
and it writes nothing.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from pipeline.batching import Item, collate, render, windows
from pipeline.declaration import specify
from pipeline.encoding import Labelled, encode
from pipeline.inference import Answer, Inference, free_memory
from pipeline.stream import chunks
from pipeline.targets.codecs import Codec, Dense, Embedding
from pipeline.targets.containers import parquet
from pipeline.targets.errors import ConfigError, UserError
from pipeline.targets.parquet_file import parquet_file
from pipeline.targets.rows import Rows
from pipeline.targets.spec import Head, Spec
from pipeline.targets.unit import Unit

if TYPE_CHECKING:
    from pipeline.job import LabelJob

LISTED, SAMPLED = 4096, 16
"""Units at the corpus's beginning among which a pilot picks, evenly, and how many it picks."""

ELEMENTS = 2**24
"""Logits of an answer, unless a single view has more: they are in memory at once."""


def head_of(job: LabelJob, name: str | None) -> str:
    """The head that is meant, the only one if None. Raises ConfigError for one that is not there."""
    names = sorted(job.store.heads)
    if name not in names and (name is not None or len(names) > 1):
        raise ConfigError(f"which head is to be sized? The job keeps {', '.join(names)}: name one of them")
    return name or names[0]


class Answers:
    """What the teacher says of one head. targets: how many; head: with a codec that keeps them whole."""

    def __init__(self, job: LabelJob, head: str | None = None) -> None:
        """head: the only one if None. Nothing is asked yet.

        Raises what preparing a job raises, and ConfigError for a head that is not there or not named.
        """
        name = head_of(job, head)
        whole: Codec = Dense("float32") if job.store.heads[name].of == "logits" else Embedding("float32")
        alone = job.store.model_copy(update={"heads": {name: whole}})
        self._renderer, self._corpus = job.views.load(), job.corpus
        self._inference = Inference(job.teacher.load)
        self._spec: Spec = specify(
            job.model_copy(update={"store": alone}), self._renderer, self._inference.teacher
        )
        self.head: Head = self._spec.heads[0]
        self.targets = 0
        self._budget = job.label.batching.largest(self._renderer.inputs)
        self._answers: list[Answer] = []
        self._units: list[Unit] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the teacher go."""
        self._inference.close()
        del self._inference
        free_memory()

    def ask(self, targets: int, progress: Callable[[int], None] | None = None) -> None:
        """Have about so many answered, from all over the corpus's beginning.

        progress: told how many there are. Raises UserError when that has no target.
        """
        units = list(islice(self._corpus.units(), LISTED))
        places = np.unique(np.linspace(0, len(units) - 1, SAMPLED).astype(int))
        # Every second one first: a whole view is asked of each, so that the targets may be there early.
        self._units = [units[place] for place in (*places[::2], *places[1::2])]
        # Small units do not have their share: then the others are asked too.
        others = [unit for place, unit in enumerate(units) if place not in places]
        for number, unit in enumerate([*self._units, *others]):
            if (wanted := targets - self.targets) <= 0:
                break
            self._ask(unit, -(-wanted // max(len(self._units) - number, 1)), progress or (lambda done: None))
        if not self.targets:
            raise UserError(f"the first {len(units)} units of the corpus have no record with a target")

    def rows(self, codec: Codec) -> Rows:
        """All targets, as a shard holds them. Raises ValueError when the codec cannot hold the head."""
        return Rows.concatenate([self._rows(answer, codec) for answer in self._answers])

    def bytes_per_target(self, codec: Codec) -> float:
        """What it costs in a shard, keys and inputs counted, without a look at what it keeps."""
        return stored_bytes(self.rows(codec)) / self.targets

    def targets_per_byte(self) -> float:
        """Targets that a byte of the corpus has, judged by one of the units, which is read whole."""
        unit = self._units[len(self._units) // 4]
        found = 0.0
        for window in windows(render(chunks(self._corpus.read(unit), 16), self._renderer), self._budget):
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

    def _ask(self, unit: Unit, wanted: int, progress: Callable[[int], None]) -> None:
        """Answers to the unit's first views, until there are so many targets."""
        most = 1 if self.head.positions == "next_token" else max(1, ELEMENTS // self.head.size)
        before = self.targets
        progress(before)
        for window in windows(render(chunks(self._corpus.read(unit), 1), self._renderer), min(most, wanted)):
            if window.items:
                part = collate(window.items, np.arange(len(window.items)), self._renderer.inputs)
                for answer in self._inference(part):
                    # What is not finite is no target: the first encoding tells.
                    if isinstance(answer, Answer) and self._labelled(answer, self.head.codec) is not None:
                        self._answers.append(answer)
                        self.targets += sum(map(self._count, answer.part.batch.lengths.tolist()))
            progress(self.targets)
            if self.targets - before >= wanted:
                return

    def _rows(self, answer: Answer, codec: Codec) -> Rows:
        labelled = self._labelled(answer, codec)
        assert labelled is not None  # answers that are not are not kept
        return labelled.rows

    def _labelled(self, answer: Answer, codec: Codec) -> Labelled | None:
        """The answer's rows; None when one of its views is not finite."""
        spec = replace(self._spec, heads=(replace(self.head, codec=codec),))
        outcomes = self._inference.after(answer, lambda given: list(encode(given, spec)))
        return outcomes[0] if len(outcomes) == 1 and isinstance(outcomes[0], Labelled) else None


def stored_bytes(rows: Rows, prefix: str = "") -> int:
    """Of the columns of a Parquet shard with these rows, or of those whose names begin so."""
    with io.BytesIO() as sink:
        writer = parquet.Writer(sink, rows.spec)
        writer.write(rows.to_arrow())
        writer.close()
        metadata = parquet_file(sink).metadata
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        columns = [group.column(number) for group in groups for number in range(metadata.num_columns)]
        return sum(c.total_compressed_size for c in columns if c.path_in_schema.startswith(prefix))
