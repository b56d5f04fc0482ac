"""What a reader gets back: the shapes that targets take, whatever codec stored them.

Losses dispatch on these classes and never on a codec.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.targets.tail import MeasuredTail

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class DenseTargets:
    """Raw teacher logits. A shift common to a row is kept as the teacher gave it.

    logits: float32 [N, V].
    """

    logits: Floats


@dataclass(frozen=True)
class TopKTargets(MeasuredTail[Floats]):
    """The k likeliest classes, and the mass of everything else at several temperatures (`MeasuredTail`).

    ids: int64 [N, k], likeliest first.
    log_probs: float32 [N, k], natural logarithm of the teacher's probabilities at temperature 1.
    betas: the inverse temperatures at which the tail was measured, ascending.
    tail_log_mass: float32 [N, len(betas)], log of the sum over the tail of exp(beta * log p); -inf if there
        is no tail. At beta = 1 it is the log of the tail's probability.
    size: V, the number of classes of the head.
    tail_slope: float32 [N, len(betas)], the derivative of tail_log_mass in beta, by which it is known between
        the betas too; 0 if there is no tail. None if it was not stored.
    """

    ids: Ints
    log_probs: Floats
    betas: tuple[float, ...]
    tail_log_mass: Floats
    size: int
    tail_slope: Floats | None = None


@dataclass(frozen=True)
class TopPTargets(MeasuredTail[Floats]):
    """As many of the likeliest classes as have a share of the mass, and the mass of everything else.

    ids: int64 [E], of each target likeliest first; log_probs: float32 [E].
    offsets: int64 [N + 1]; target n has the entries offsets[n]:offsets[n + 1], at least one.
    betas, tail_log_mass, size, tail_slope: as in `TopKTargets`; the tail is what is not among the entries.
    """

    ids: Ints
    log_probs: Floats
    offsets: Ints
    betas: tuple[float, ...]
    tail_log_mass: Floats
    size: int
    tail_slope: Floats | None = None


@dataclass(frozen=True)
class SparseTargets:
    """An unbiased sparse estimate of the teacher's distribution: E[sum of weights at id i] = p_i.

    ids: int64 [E]; an id may occur more than once in a target, its weights add up.
    weights: float32 [E], of one target summing to 1.
    offsets: int64 [N + 1]; target n has the entries offsets[n]:offsets[n + 1].
    head_counts: integers [N]; the first entries of a target are its head, kept with their probability.
    size: V, the number of classes of the head.
    """

    ids: Ints
    weights: Floats
    offsets: Ints
    head_counts: npt.NDArray[np.integer[Any]]
    size: int

    def classes(self) -> tuple[Ints, npt.NDArray[np.float64]]:
        """Each class of a target once, with the sum of its weights: places in [N * V], ascending, int64 [U],
        and the sums, float64 [U]."""
        rows = np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))
        places, entries = np.unique(rows * self.size + self.ids, return_inverse=True)
        sums = np.bincount(entries, self.weights.astype(np.float64), minlength=len(places))
        return places, sums.astype(np.float64)


@dataclass(frozen=True)
class EmbeddingTargets:
    """Vectors of features, of a head that is no distribution. vectors: float32 [N, D]."""

    vectors: Floats


Targets = DenseTargets | TopKTargets | TopPTargets | SparseTargets | EmbeddingTargets
