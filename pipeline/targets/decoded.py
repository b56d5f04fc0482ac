"""What a reader gets back: the three shapes that targets take, whatever codec stored them.

Losses dispatch on these classes and never on a codec.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class DenseTargets:
    """Raw teacher logits. A shift common to a row is kept as the teacher gave it.

    logits: float32 [N, V].
    """

    logits: Floats


@dataclass(frozen=True)
class TopKTargets:
    """The k likeliest classes and the mass of everything else.

    ids: int64 [N, k], likeliest first.
    log_probs: float32 [N, k], natural logarithm of the teacher's probabilities at temperature 1.
    betas: the inverse temperatures at which the tail was measured, ascending.
    tail_log_mass: float32 [N, len(betas)], log of the sum over the tail of exp(beta * log p); -inf if there
        is no tail. At beta = 1 it is the log of the tail's probability.
    size: V, the number of classes of the head.
    """

    ids: Ints
    log_probs: Floats
    betas: tuple[float, ...]
    tail_log_mass: Floats
    size: int


@dataclass(frozen=True)
class SparseTargets:
    """An unbiased sparse estimate of the teacher's distribution: E[sum of weights at id i] = p_i.

    ids: int64 [E]; an id may occur more than once in a target, its weights add up.
    weights: float32 [E], of one target summing to 1.
    offsets: int64 [N + 1]; target n has the entries offsets[n]:offsets[n + 1].
    head_counts: int64 [N]; the first entries of a target are its head, kept with their probability.
    size: V, the number of classes of the head.
    """

    ids: Ints
    weights: Floats
    offsets: Ints
    head_counts: Ints
    size: int


Targets = DenseTargets | TopKTargets | SparseTargets
