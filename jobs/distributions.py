"""What stored targets say of each class: ids, probabilities, and which of them are the teacher's own.

It knows the decoded shapes and no codec. A shape that losses learn to read is taught to `distributions` too,
and everything that shows targets to a person follows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.targets.decoded import DenseTargets, SparseTargets, TopKTargets, TopPTargets
from pipeline.targets.errors import CorruptShard

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

Distribution = DenseTargets | TopKTargets | TopPTargets | SparseTargets
"""The decoded shapes that are distributions over classes."""


@dataclass(frozen=True)
class Distributions:
    """N targets, class by class; no class twice in a target.

    ids: int64 [E]; probabilities: float64 [E], of one target summing to at most 1; is_head: bool [E], kept
    with the teacher's probability, not drawn from a tail; offsets: int64 [N + 1], target n has the entries
    offsets[n]:offsets[n + 1].
    """

    ids: Ints
    probabilities: Floats
    is_head: npt.NDArray[np.bool_]
    offsets: Ints

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> Ints:
        """Classes of each target, int64 [N]."""
        return np.diff(self.offsets)

    @property
    def targets(self) -> Ints:
        """The target of each entry, int64 [E]."""
        return np.repeat(np.arange(len(self)), self.counts)

    def entropy(self) -> Floats:
        """Nats, [N]. What a target does not name counts as one class more."""
        terms = -_p_log_p(self.probabilities)
        named = _sums(self.targets, terms, len(self))
        total = _sums(self.targets, self.probabilities, len(self))
        return named - _p_log_p(np.maximum(1 - total, 0))

    def probability(self, classes: Ints) -> Floats:
        """Of one class for each target, [N]; 0 if the target does not name it."""
        targets = self.targets
        matches = self.ids == classes[targets]
        return _sums(targets[matches], self.probabilities[matches], len(self))


def distributions(decoded: Distribution, start: int, stop: int) -> Distributions:
    """The targets start:stop, at temperature 1. Raises CorruptShard for what is no distribution."""
    if isinstance(decoded, DenseTargets):
        logits = decoded.logits[start:stop].astype(np.float64)
        with np.errstate(invalid="ignore"):  # of what is not finite becomes what is no number, refused below
            weights = np.exp(logits - logits.max(axis=1, keepdims=True))
            probabilities = weights / weights.sum(axis=1, keepdims=True)
        ids = np.broadcast_to(np.arange(logits.shape[1]), logits.shape)
        return _checked(_rectangle(ids, probabilities))
    if isinstance(decoded, TopKTargets):
        ids = _classes(decoded.ids[start:stop], decoded.size)
        return _checked(_rectangle(ids, np.exp(decoded.log_probs[start:stop].astype(np.float64))))
    if isinstance(decoded, TopPTargets):
        bounds = decoded.offsets[start : stop + 1]
        part = slice(bounds[0], bounds[-1])
        ids, probabilities = (
            _classes(decoded.ids[part], decoded.size),
            np.exp(decoded.log_probs[part], dtype=np.float64),
        )
        return _checked(
            Distributions(ids, probabilities, np.ones(len(ids), dtype=np.bool_), bounds - bounds[0])
        )
    return _checked(_sparse(decoded, start, stop))


def _classes(ids: Ints, size: int) -> Ints:
    if ids.size and not 0 <= ids.min() <= ids.max() < size:
        raise CorruptShard(f"it names class {ids.max()} of {size}")
    return ids


def _checked(found: Distributions) -> Distributions:
    if not np.isfinite(found.probabilities).all():
        raise CorruptShard("it has a probability that is no number")
    return found


def _rectangle(ids: Ints, probabilities: Floats) -> Distributions:
    """[N, k] each, all of it head."""
    targets, k = ids.shape
    head = np.ones(ids.size, dtype=np.bool_)
    return Distributions(ids.ravel(), probabilities.ravel(), head, np.arange(targets + 1) * k)


def _sparse(decoded: SparseTargets, start: int, stop: int) -> Distributions:
    """An id that occurs more than once in a target becomes one entry; it is head if one of them is."""
    bounds = decoded.offsets[start : stop + 1]
    part = slice(bounds[0], bounds[-1])
    counts = np.diff(bounds)
    targets = np.repeat(np.arange(len(counts)), counts)
    place = np.arange(bounds[0], bounds[-1]) - bounds[:-1][targets]
    ids = _classes(decoded.ids[part], decoded.size)
    named, inverse = np.unique(targets * decoded.size + ids, return_inverse=True)
    head = np.zeros(len(named), dtype=np.bool_)
    head[inverse[place < decoded.head_counts[start:stop][targets]]] = True
    weights = _sums(inverse, decoded.weights[part], len(named))
    offsets = np.searchsorted(named, np.arange(len(counts) + 1) * decoded.size)
    return Distributions(named % decoded.size, weights, head, offsets)


def _sums(groups: Ints, values: npt.NDArray[np.floating], count: int) -> Floats:
    """Of the values in each group 0 … count - 1."""
    return np.bincount(groups, weights=values, minlength=count).astype(np.float64)


def _p_log_p(probabilities: Floats) -> Floats:
    return probabilities * np.log(probabilities, where=probabilities > 0, out=np.zeros_like(probabilities))
