"""A pilot of an embedding head: what codecs of vectors cost, and how well they keep directions.

It knows vectors and their codecs. Codebooks are learned from four vectors of five, and everything is measured
on the fifth, which no book has seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from pipeline.answers import Answers, stored_bytes
from pipeline.statistics import cosines
from pipeline.targets.codecs import Codebooks, Codec
from pipeline.targets.codecs.codebooks import train
from pipeline.targets.decoded import EmbeddingTargets

HELD_OUT = 5
"""One vector in so many is measured and not learned from."""


@dataclass(frozen=True)
class VectorPoint:
    """A codec on a pilot's vectors.

    bytes: of a vector; bytes_per_target: of a Parquet shard's columns, keys and inputs among them. cosine,
    low: mean and fifth percentile, between the teacher's and the stored, over vectors that no book has seen.
    """

    codec: Codec
    bytes: float
    bytes_per_target: float
    cosine: float
    low: float


class VectorPilot(Answers):
    """The teacher's vectors of some of a job's corpus, once it was asked."""

    @cached_property
    def vectors(self) -> npt.NDArray[np.float32]:
        """All of them, float32 [N, D], in the order asked."""
        return _vectors(self.rows(self.head.codec).decode(self.head.name))

    @property
    def learned(self) -> int:
        """How many of them books are learned from."""
        return int(self._learned.sum())

    def train(self, count: int, seed: int, progress: Callable[[int], None] | None = None) -> Codebooks:
        """Codebooks of `count` bytes a vector. progress: told how many books are learned.

        Raises ValueError for too few vectors, or features that are no multiple of `count`.
        """
        return train(self.vectors[self._learned], count, seed=seed, progress=progress)

    def measure(self, codec: Codec) -> VectorPoint:
        """What a codec costs and keeps."""
        rows = self.rows(codec)
        stored = _vectors(rows.decode(self.head.name))
        unseen = ~self._learned
        kept = cosines(self.vectors[unseen], stored[unseen])
        return VectorPoint(
            codec,
            codec.statistics(rows.heads[self.head.name], self.head.size)["payload_bytes"],
            stored_bytes(rows) / self.targets,
            float(kept.mean()),
            float(np.quantile(kept, 0.05)),
        )

    @property
    def _learned(self) -> npt.NDArray[np.bool_]:
        return np.asarray(np.arange(self.targets) % HELD_OUT != HELD_OUT - 1)


def _vectors(targets: object) -> npt.NDArray[np.float32]:
    assert isinstance(targets, EmbeddingTargets)
    return targets.vectors
