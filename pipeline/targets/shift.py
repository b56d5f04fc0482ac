"""Whether a language model's targets stand at their own tokens, or one position off.

Knows targets and tokens, not where either come from. A target says something of the token that came next,
and hardly anything of the one before or after it. So the mean log-likelihood of the real tokens tells targets
that stand one position off, without a teacher: under the true shift it is far higher. Of a teacher that fits
no token nothing follows, and nothing is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.targets.decoded import DenseTargets, Ints, SparseTargets, Targets, TopKTargets, TopPTargets
from pipeline.targets.ragged import ranges

Floats = npt.NDArray[np.float64]

FALSE_ALARM = 1e-6
"""Probability that a check or an audit refuses an honest store by chance."""

DISTRIBUTIONS = (DenseTargets, TopKTargets, TopPTargets, SparseTargets)
"""Targets that are probabilities of classes. Of others nothing says which token they belong to."""

LEAST = 1e-4
"""Probability that a class is taken to have where a target says nothing of it, or less."""


@dataclass(frozen=True)
class Shift:
    """How well targets fit the real tokens, and those one position off. Means in nats, over `groups`.

    own: of the token each target is for; before, after: of the tokens before and after that one.
    verdict: "before" or "after" where the targets fit that token clearly better than their own, else None.
    """

    groups: int
    own: float
    before: float
    after: float
    verdict: str | None


class ShiftTest:
    """Gathers how each target fits three neighbouring tokens, and judges.

    Texts repeat themselves, and what repeats is no new evidence: scores are first averaged over each group of
    targets that may be alike for a reason that has nothing to do with their place, and these averages are the
    sample.
    """

    def __init__(self) -> None:
        self._groups: list[Ints] = []
        self._scores: list[Floats] = []

    def add(self, groups: Ints, own: Floats, before: Floats, after: Floats) -> None:
        """Some targets, each with the group that it is in; float64 [n] scores."""
        if len(own):
            self._groups.append(groups)
            self._scores.append(np.stack([own, before, after], axis=1))

    def result(self, tests: int = 2, margin: float = 0.0) -> Shift:
        """tests: that share the chance of a false alarm; margin: nats that are no difference."""
        if not self._groups:
            return Shift(0, math.nan, math.nan, math.nan, None)
        groups, which = np.unique(np.concatenate(self._groups), return_inverse=True)
        counts = np.bincount(which)
        columns = np.concatenate(self._scores).T
        own, before, after = (np.bincount(which, c) / counts for c in columns)
        limit = alarm(tests)
        verdict, best = None, margin
        for name, other in (("before", before), ("after", after)):
            gain = other - own
            if gain.mean() > best and gain.sum() > limit * math.sqrt(float((gain**2).sum())):
                verdict, best = name, float(gain.mean())
        return Shift(len(groups), float(own.mean()), float(before.mean()), float(after.mean()), verdict)


def alarm(tests: int) -> float:
    """Standard deviations beyond which one of `tests` two-sided tests may be believed: sub-Gaussian, so that
    all of them together are wrong with a probability of at most FALSE_ALARM.
    """
    return math.sqrt(2 * math.log(2 * tests / FALSE_ALARM))


def label_shift(
    test: ShiftTest, targets: Targets, tokens: Ints, given: npt.NDArray[np.bool_] | None = None
) -> None:
    """Add one row to a test by the tokens alone. targets: of all its n positions; tokens: int64 [n + 1];
    given: bool [n], which of them are the teacher's, None for all.

    A teacher that hardly looks at the text says much the same after the same token, and may like it again or
    not: the targets after a token are a group.
    """
    inner = np.arange(1, len(tokens) - 2)
    if given is not None:
        inner = inner[given[inner]]
    test.add(
        tokens[inner],
        log_likelihood(targets, inner, tokens[inner + 1]),
        log_likelihood(targets, inner, tokens[inner]),
        log_likelihood(targets, inner, tokens[inner + 2]),
    )


def log_likelihood(targets: Targets, at: Ints, classes: Ints) -> Floats:
    """log p of one class a target, nats, float64 [n], at least log LEAST.

    at: int64 [n], which targets; classes: int64 [n]. A class outside of a top-k has its share of the tail.
    """
    match targets:
        case DenseTargets(logits):
            z = logits[at].astype(np.float64)
            z -= z.max(axis=1, keepdims=True)
            found = z[np.arange(len(at)), classes] - np.log(np.exp(z).sum(axis=1))
        case TopKTargets(ids, log_probs, betas, tail, size):
            hit = ids[at] == classes[:, None]
            outside = np.full(len(at), -np.inf)
            if 1.0 in betas and size > ids.shape[1]:
                outside = tail[at, betas.index(1.0)].astype(np.float64) - math.log(size - ids.shape[1])
            kept = np.where(hit, log_probs[at], -np.inf).max(axis=1, initial=-np.inf)
            found = np.where(hit.any(axis=1), kept, outside)
        case TopPTargets(ids, log_probs, offsets, betas, tail, size):
            owner, chosen = _entries_of(offsets, at)
            hit = ids[chosen] == classes[owner]
            found = np.full(len(at), -np.inf)
            if 1.0 in betas:
                others = np.maximum(size - np.diff(offsets)[at], 1)
                found = tail[at, betas.index(1.0)].astype(np.float64) - np.log(others)
            found[owner[hit]] = log_probs[chosen[hit]]
        case SparseTargets(ids, weights, offsets, _, _):
            owner, entries = _entries_of(offsets, at)
            hit = ids[entries] == classes[owner]
            mass = np.bincount(owner[hit], weights[entries[hit]], minlength=len(at))
            with np.errstate(divide="ignore"):
                found = np.log(mass)
        case _:
            raise TypeError(f"{type(targets).__name__} have no probabilities that are known here")
    result: Floats = np.maximum(found, math.log(LEAST))
    return result


def _entries_of(offsets: Ints, at: Ints) -> tuple[Ints, Ints]:
    """The entries of some targets, and which of them each is of; int64 [n] both."""
    lengths = np.diff(offsets)[at]
    return np.repeat(np.arange(len(at)), lengths), ranges(offsets[at], lengths)
