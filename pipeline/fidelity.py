"""What a codec keeps of a teacher's distributions, judged by what a student would feel of it.

It knows distributions and decoded targets, and nothing of models, stores or jobs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.targets.decoded import (
    DenseTargets,
    EmbeddingTargets,
    Ints,
    SparseTargets,
    Targets,
    TopKTargets,
    TopPTargets,
)
from pipeline.targets.errors import ConfigError

Floats = npt.NDArray[np.floating[Any]]
Doubles = npt.NDArray[np.float64]

DECADES = 6
"""Powers of ten below 1 in which probabilities are told apart by half a decade."""


@dataclass(frozen=True)
class Fidelity:
    """Means over targets. p: the teacher's distribution; p_hat: what its target stands for; q: a student's.

    error: |p_hat - p|², the squared error of the gradient q - p_hat at the student's logits.
    angle: degrees between q - p and q - p_hat, all targets stacked, q being the mean of all p: a student that
    knows how frequent classes are, and nothing else.
    calibration: probability that is in the wrong place on average: half the sum, over classes of like p, of
    |mean p_hat - mean p|. It falls to 0 with more targets where p_hat is unbiased, and nowhere else.
    """

    targets: int
    error: float
    angle: float
    calibration: float


@dataclass(frozen=True)
class Reference:
    """Sums of some of the teacher's distributions: Σ |p|², Σ q·p, and Σ p by half decades of p."""

    square: float
    along: float
    mass: Doubles

    @classmethod
    def of(cls, p: Floats, q: Floats) -> Reference:
        """p: [N, V]; q: [V]."""
        square, along = np.einsum("nv,nv->", p, p, dtype=np.float64), p.sum(axis=0, dtype=np.float64) @ q
        mass = np.bincount(_bins(p).ravel(), p.ravel(), minlength=2 * DECADES + 1)
        return cls(float(square), float(along), mass.astype(np.float64))


class Comparison:
    """Adds up what `Fidelity` is of. q: the student's distribution, [V]."""

    def __init__(self, q: Floats) -> None:
        self._q = q.astype(np.float64)
        self._targets = 0
        self._error = self._dot = self._ours = self._theirs = 0.0
        self._shift = np.zeros(2 * DECADES + 1)

    def add(self, p: Floats, teacher: Reference, targets: Targets) -> None:
        """N targets. p: the teacher's distributions, [N, V]; teacher: sums of these."""
        q = self._q
        if isinstance(targets, SparseTargets):
            places, weights = targets.classes()
            there = p.ravel()[places].astype(np.float64)
            square, cross = float(weights @ weights), float(weights @ there)
            along = float(weights @ q[places % targets.size])
            mass = np.bincount(_bins(there), weights, minlength=len(self._shift))
        else:
            estimated = estimate(targets, q)
            square, cross = float((estimated * estimated).sum()), float((estimated * p).sum())
            along = float((estimated @ q).sum())
            mass = np.bincount(_bins(p).ravel(), estimated.ravel(), minlength=len(self._shift))
        student = len(p) * float(q @ q)
        self._targets += len(p)
        self._error += max(0.0, teacher.square + square - 2 * cross)
        self._dot += student - teacher.along - along + cross
        self._theirs += student - 2 * teacher.along + teacher.square
        self._ours += student - 2 * along + square
        self._shift += mass - teacher.mass

    def fidelity(self) -> Fidelity:
        """Of all that was added. Raises ValueError if that is nothing."""
        if not self._targets:
            raise ValueError("there is no target to compare")
        norm = math.sqrt(max(0.0, self._ours * self._theirs))
        return Fidelity(
            targets=self._targets,
            error=self._error / self._targets,
            angle=math.degrees(math.acos(min(1.0, self._dot / norm))) if norm else 0.0,
            calibration=float(np.abs(self._shift).sum()) / self._targets / 2,
        )


def estimate(targets: Targets, q: Floats) -> Floats:
    """The distributions p_hat [N, V] for which the student's loss has the gradient q - p_hat.

    Of top-k and top-p targets the tail's mass lies where the student q [V] has it: their loss compares the
    tail as a whole. Raises ConfigError for embeddings.
    """
    match targets:
        case DenseTargets(logits):
            dense: Floats = np.exp(logits - logits.max(axis=1, keepdims=True))
            dense /= dense.sum(axis=1, keepdims=True, dtype=np.float64)
            return dense
        case SparseTargets(_, _, offsets, _, size):
            places, weights = targets.classes()
            p = np.zeros((len(offsets) - 1, size))
            p.ravel()[places] = weights
            return p
        case TopKTargets(ids=ids, log_probs=log_probs):
            rows = np.repeat(np.arange(len(ids)), ids.shape[1])
            return _with_tail(rows, ids.ravel(), log_probs.ravel(), targets.tail_log_mass_at(1.0), q)
        case TopPTargets(ids=ids, log_probs=log_probs, offsets=offsets):
            rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
            return _with_tail(rows, ids, log_probs, targets.tail_log_mass_at(1.0), q)
        case EmbeddingTargets():
            raise ConfigError("embeddings are no distributions: their codecs are chosen by cosine")


def _with_tail(rows: Ints, ids: Ints, log_probs: Floats, tail_log_mass: Floats, q: Floats) -> Doubles:
    """Kept classes with their probability, and the tail's mass where q has it."""
    p = np.tile(q.astype(np.float64), (len(tail_log_mass), 1))
    p[rows, ids] = 0.0
    rest = p.sum(axis=1)
    p *= np.divide(np.exp(tail_log_mass), rest, out=np.zeros_like(rest), where=rest > 0)[:, None]
    p[rows, ids] = np.exp(log_probs.astype(np.float64))
    return p


def _bins(p: Floats) -> npt.NDArray[np.int64]:
    """The half decade that each probability is in, the last one being 1 alone and the first all below."""
    floor = np.maximum(p, 10.0**-DECADES, dtype=p.dtype)
    bins: npt.NDArray[np.int64] = (2 * np.log10(floor) + 2 * DECADES).astype(np.int64)
    return np.clip(bins, 0, 2 * DECADES, out=bins)
