"""On average: do sparse targets estimate the teacher's distribution without bias, whatever their bytes are?

Where noise moves a draw, bytes differ and nothing is wrong, so unbiasedness is tested without them. Let p̂ be
the stored target, p̃ the teacher's distribution encoded with fresh random numbers, and f any function of the
classes that does not depend on either. If the store is honest, p̂ and p̃ have the same distribution, so
d = <p̂, f> - <p̃, f> is symmetric about 0 and independent from target to target; then (Hoeffding, conditional
on all |d|)

    P(|Σ d| >= x sqrt(Σ d²)) <= 2 exp(-x²/2),

whatever the codec, the teacher and the number of targets. No variance is estimated and no normal distribution
assumed. With <p, f> in place of <p̃, f> the sum's variance would be half, but d would not be symmetric, and
for rare classes the bound would not hold. What p itself may be off by is allowed on top.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.audit.values import Chunk, Floats, Ints, Noise, owners
from pipeline.targets.codecs import Codec, Threshold
from pipeline.targets.decoded import SparseTargets
from pipeline.targets.shift import alarm

SMALL = 0.02
"""Border of head and tail for the statistics of a codec that has none."""


@dataclass(frozen=True)
class Bias:
    """One statistic over all targets. name: of f; mean: of d; z: Σ d / sqrt(Σ d²), beyond what noise allows;
    limit: what z must not exceed.
    """

    name: str
    mean: float
    z: float
    limit: float

    @property
    def found(self) -> bool:
        """Whether the store is biased."""
        return self.z > self.limit


class Averages:
    """Sums over all targets of a head that is stored as sparse estimates."""

    def __init__(self, codec: Codec, size: int, noise: Noise) -> None:
        self._kind, self._size, self._noise = codec.kind, size, noise
        self._border = codec.threshold if isinstance(codec, Threshold) else SMALL
        self._targets = 0
        self._sums: dict[str, Floats] = {}
        self._truncated = np.zeros(3)

    def add(self, chunk: Chunk, stored: SparseTargets, fresh: SparseTargets, labels: Ints | None) -> None:
        """Some targets; fresh: the teacher's, encoded with random numbers that are independent of all.

        labels: int64 [n], the tokens that really came next.
        """
        top = chunk.log_p.argmax(dim=1).cpu().numpy()
        count = len(top)
        self._targets += count
        sides = [_Entries(t.ids, owners(t), chunk.at(t), top, labels, self._border) for t in (stored, fresh)]
        for name, statistic in STATISTICS.items():
            if name == "label" and labels is None:
                continue
            ours, theirs = (
                np.bincount(side.owner, targets.weights * statistic(side), minlength=count).astype(np.float64)
                for side, targets in zip(sides, (stored, fresh), strict=True)
            )
            sums = self._sums.setdefault(name, np.zeros(3))
            sums += [(ours - theirs).sum(), ((ours - theirs) ** 2).sum(), theirs.sum()]
        beyond, usual = (self._truncation(chunk, side, count) for side in sides)
        self._truncated += [beyond.sum(), (beyond - usual).sum(), ((beyond - usual) ** 2).sum()]

    def _truncation(self, chunk: Chunk, entries: _Entries, count: int) -> Floats:
        """The probability beyond a target's classes where these are exactly the likeliest, else 0; [n].

        Less than a hundredth counts as nothing.
        """
        import torch

        least = np.zeros(count)
        np.minimum.at(least, entries.owner, entries.log_p)
        distinct, first = np.unique(entries.owner * self._size + entries.ids, return_index=True)
        kept = np.bincount(distinct // self._size, minlength=count)
        beyond = 1 - np.bincount(entries.owner[first], np.exp(entries.log_p[first]), minlength=count)
        border = torch.from_numpy(least + self._noise.most).to(chunk.log_p.device)[:, None]
        likelier = (chunk.log_p > border).sum(dim=1).cpu().numpy()
        return np.where((likelier <= kept) & (beyond > 0.01), beyond, 0.0)

    def biases(self, tests: int) -> list[Bias]:
        """Each statistic; tests: how many the whole audit takes. Empty for a codec that draws nothing."""
        found = []
        for name, (total, squares, mass) in self._sums.items():
            beyond = max(0.0, abs(total) - self._noise.mean * mass)
            z = beyond / math.sqrt(squares) if squares else 0.0
            found.append(Bias(name, total / max(self._targets, 1), z, alarm(tests)))
        return found

    def truncated(self, tests: int) -> str | None:
        """The sentence, if what is declared as a sample never strays from the likeliest classes.

        An honest sample of a sharp distribution often consists of its likeliest classes too: it is judged
        against the fresh ones, at the same level as a bias.
        """
        beyond, excess, squares = self._truncated
        if not excess > alarm(tests) * math.sqrt(squares) or excess < 0.5 * beyond:
            return None
        return (
            f"declared {self._kind} but truncated top-k: the stored classes are exactly the "
            f"teacher's likeliest, and of the {beyond / self._targets:.1%} of its probability beyond them "
            "nothing was ever drawn"
        )


@dataclass(frozen=True)
class _Entries:
    """Stored classes of some targets, and what the teacher says of them.

    ids: int64 [E]; owner: int64 [E], the target; log_p: float64 [E]; top: int64 [n], each target's likeliest
    class; labels: int64 [n], what really came next; border: probability that parts head from tail.
    """

    ids: Ints
    owner: Ints
    log_p: Floats
    top: Ints
    labels: Ints | None
    border: float


def _label(entries: _Entries) -> Floats:
    assert entries.labels is not None
    return np.asarray(entries.ids == entries.labels[entries.owner], dtype=np.float64)


def _likeliest(entries: _Entries) -> Floats:
    return np.asarray(entries.ids == entries.top[entries.owner], dtype=np.float64)


def _head(entries: _Entries) -> Floats:
    return (entries.log_p >= math.log(entries.border)).astype(np.float64)


def _deep_tail(entries: _Entries) -> Floats:
    return (entries.log_p < math.log(entries.border / 10)).astype(np.float64)


def _surprise(entries: _Entries) -> Floats:
    return -entries.log_p


def _half(number: int) -> Callable[[_Entries], Floats]:
    """An arbitrary half of the classes: what exchanges or drops classes shows in some of them."""

    def statistic(entries: _Entries) -> Floats:
        mixed = entries.ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        return ((mixed >> np.uint64(40 + number)) & np.uint64(1)).astype(np.float64)

    return statistic


STATISTICS: dict[str, Callable[[_Entries], Floats]] = {
    "label": _label,
    "likeliest": _likeliest,
    "head": _head,
    "deep tail": _deep_tail,
    "surprise": _surprise,
    "half 1": _half(0),
    "half 2": _half(1),
    "half 3": _half(2),
}
"""f of the module's docstring, a function of a class given its target's distribution. "label": the token that
really came next; "surprise": -log p; "half": of all classes, arbitrary ones.
"""
