"""A job's codebooks: learned once from a pilot of its own teacher, and from then on those of its store.

It knows when books are to be learned and how many vectors that takes; how, the codec knows. A store's spec
has its books, so a job that goes on, a replica and an audit take them from there and learn nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.targets.codecs import Codebooks
from pipeline.targets.errors import ConfigError, UserError
from pipeline.targets.spec import Head, Spec
from pipeline.targets.store import Store

if TYPE_CHECKING:
    from pipeline.job import LabelJob, LearnedCodebooks

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is, and of how much."""

LEAST = 256
"""Vectors that books are learned from at least, one for each word."""


@dataclass(frozen=True)
class Learned:
    """Books that were learned. vectors: how many from; cosine, low: mean and fifth percentile of the cosine
    between the teacher's vector and what is stored of it, over `unseen` vectors that the books were not
    learned from.
    """

    head: str
    codec: Codebooks
    vectors: int
    unseen: int
    cosine: float
    low: float

    def __str__(self) -> str:
        return (
            f"{self.codec.count} bytes a vector, learned from {self.vectors:,} vectors; cosine to the "
            f"teacher's {self.cosine:.4f} on {self.unseen:,} others (95 % above {self.low:.4f})"
        )


def books_of(spec: Spec) -> dict[str, Codebooks]:
    """The codebooks of a store, by head."""
    return {head.name: head.codec for head in spec.heads if isinstance(head.codec, Codebooks)}


def books_for(
    job: LabelJob,
    learned: Callable[[Learned], None] | None = None,
    progress: Progress | None = None,
) -> dict[str, Codebooks]:
    """The books of the heads for which the job says to learn some, by head: those of its store, or learned
    now. Seed and pilot follow from the job, so the same job gives the same books on the same machine.

    Raises ConfigError for bytes that do not divide the features, UserError when the corpus's beginning has
    too few vectors, and what preparing a job raises.
    """
    from pipeline.job import LearnedCodebooks

    wanted = {name: codec for name, codec in job.store.heads.items() if isinstance(codec, LearnedCodebooks)}
    if not wanted:
        return {}
    if Store.exists(job.store.url, job.store.options):
        return books_of(Store.open(job.store.url, job.store.options).spec)
    books = {}
    for name, codec in sorted(wanted.items()):
        found = _learn(job, name, codec, progress or (lambda what, done, total: None))
        books[name] = found.codec
        if learned is not None:
            learned(found)
    return books


def _learn(job: LabelJob, name: str, wanted: LearnedCodebooks, progress: Progress) -> Learned:
    from pipeline.vectors import VectorPilot

    with VectorPilot(job, name) as pilot:
        _check(pilot.head, wanted.bytes)
        pilot.ask(
            wanted.pilot, lambda done: progress(f"the teacher's {name}, for codebooks:", done, wanted.pilot)
        )
        if pilot.learned < LEAST:
            raise UserError(
                f"store.heads.{name}: the corpus's beginning has {pilot.targets} vectors, of which "
                f"{pilot.learned} would be learned from; codebooks take {LEAST} at least: give more of the "
                "corpus, a larger pilot, or the codec embedding"
            )
        try:
            codec = pilot.train(
                wanted.bytes,
                job.store.seed,
                lambda done: progress(f"codebooks of the {name}, learned:", done, wanted.bytes),
            )
        except ValueError as error:
            raise UserError(f"store.heads.{name}: {error}") from error
        point = pilot.measure(codec)
        unseen = pilot.targets - pilot.learned
        return Learned(name, codec, pilot.learned, unseen, point.cosine, point.low)


def _check(head: Head, count: int) -> None:
    if head.size % count:
        fitting = [str(n) for n in range(1, min(head.size, 128) + 1) if head.size % n == 0]
        raise ConfigError(
            f"store.heads.{head.name}.bytes: the head has {head.size} features, which are not cut into "
            f"{count} like parts: take one of {', '.join(fitting)}"
        )
