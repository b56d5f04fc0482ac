"""Target by target: is it what the teacher says, but for noise and the codec's own rounding?

It knows the teacher's logits of some targets, the targets that are stored, and those that the store should
hold: the same logits encoded again with the same random numbers. The codec's rounding is measured, as what
encoding changes. Where the targets come from it does not know.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipeline.targets.codecs import Codec, Sampled, Threshold
from pipeline.targets.decoded import (
    DenseTargets,
    EmbeddingTargets,
    SparseTargets,
    Targets,
    TopKTargets,
    TopPTargets,
)

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

DEEPEST = -30.0
"""Log-probabilities below are taken as this: what is as unlikely as that differs freely."""

TAIL_ROUNDING = 0.1
"""How far, in draws, a tail's mass may be from a whole number where rounding decides how many it takes."""


@dataclass(frozen=True)
class Noise:
    """What two honest computations of a log-probability may differ by, nats.

    mean: systematically, over many; most: any single one. padded: whether a class without probability in a
    top-k target is there to fill it up, and means nothing.
    """

    mean: float
    most: float
    padded: bool = False

    @classmethod
    def of(cls, exact: bool, imported: bool) -> Noise:
        """exact: the teacher computes in float32 or better. imported: by other software, perhaps of a fit."""
        if imported:
            return cls(0.05, 0.5, padded=True)
        return cls(5e-4, 5e-3) if exact else cls(0.03, 0.3)


@dataclass(frozen=True)
class Chunk:
    """Some targets of a row. values: the teacher's logits [n, V]; log_p: their log-softmax, float32."""

    values: torch.Tensor
    log_p: torch.Tensor
    stored: Targets
    expected: Targets

    def at(self, targets: SparseTargets) -> Floats:
        """log p of each entry, at least DEEPEST, float64 [E]."""
        import torch

        owner = owners(targets)
        device = self.log_p.device
        picked = self.log_p[torch.from_numpy(owner).to(device), torch.from_numpy(targets.ids).to(device)]
        found: Floats = picked.double().cpu().numpy().clip(DEEPEST)
        return found

    def running(self) -> torch.Tensor:
        """Running sums of p in the order of classes, float64 [n, V], on the host."""
        return self.log_p.double().exp().cumsum(dim=1).cpu()


@dataclass(frozen=True)
class Verdict:
    """On one target. at: its place in the chunk; reason: what is wrong, "" if nothing is; equal: whether it
    is exactly as expected; error: the largest difference of a log-probability, for dense of a logit, nats.
    likeliest: that of the likeliest class, infinite where nothing is said of it.
    """

    at: int
    reason: str
    equal: bool
    error: float
    likeliest: float = math.inf


def compare(chunk: Chunk, codec: Codec, noise: Noise) -> Iterator[Verdict]:
    """A verdict on each target of the chunk."""
    match chunk.stored, chunk.expected:
        case DenseTargets() as stored, DenseTargets() as expected:
            return _dense(chunk, stored, expected, noise)
        case TopKTargets() as stored, TopKTargets() as expected:
            return _topk(chunk, stored, expected, noise)
        case SparseTargets() as stored, SparseTargets() as expected:
            return _sparse(chunk, stored, expected, codec, noise)
        case TopPTargets() as stored, TopPTargets() as expected:
            width = int(max(np.diff(t.offsets).max(initial=1) for t in (stored, expected)))
            return _topk(chunk, _padded(stored, width), _padded(expected, width), replace(noise, padded=True))
        case EmbeddingTargets() as stored, EmbeddingTargets() as expected:
            return _vectors(chunk, stored, expected, noise)
    raise TypeError(f"{codec.kind} decodes to two kinds of targets")


def _dense(chunk: Chunk, stored: DenseTargets, expected: DenseTargets, noise: Noise) -> Iterator[Verdict]:
    raw, ours, theirs = chunk.values.cpu().numpy(), stored.logits, expected.logits
    with np.errstate(invalid="ignore"):
        rounding = np.nan_to_num(abs(theirs - raw), nan=0.0).max(axis=1)
        errors = np.where(ours == theirs, 0.0, abs(ours - theirs))
    # Where logits are large, so are the differences of float arithmetic.
    scale = np.maximum(1.0, abs(np.where(np.isfinite(raw), raw, 0)).max(axis=1) / 20)
    for at, error in enumerate(errors):
        worst = int(error.argmax())
        reason = ""
        if not error[worst] <= noise.most * scale[at] + 2.5 * rounding[at]:
            given = f"the teacher gives {theirs[at, worst]:.4g}"
            reason = f"class {worst} has the logit {ours[at, worst]:.4g}, {given}"
        yield Verdict(at, reason, not error.any(), float(error[worst]))


def _topk(chunk: Chunk, stored: TopKTargets, expected: TopKTargets, noise: Noise) -> Iterator[Verdict]:
    import torch

    ids = torch.from_numpy(stored.ids).to(chunk.log_p.device)
    theirs = torch.from_numpy(expected.ids).to(chunk.log_p.device)
    now = chunk.log_p.gather(1, ids).double().cpu().numpy().clip(DEEPEST)
    rest = chunk.log_p.scatter(1, ids, -torch.inf).max(dim=1).values.double().cpu().numpy()
    then = stored.log_probs.astype(np.float64).clip(DEEPEST)
    exact = chunk.log_p.gather(1, theirs).double().cpu().numpy().clip(DEEPEST)
    wanted = expected.log_probs.astype(np.float64).clip(DEEPEST)
    rounding = abs(wanted - exact).max(axis=1, where=wanted > DEEPEST, initial=0.0)
    tails = [t.tail_log_mass.astype(np.float64).clip(DEEPEST) for t in (stored, expected)]
    tail = abs(tails[0] - tails[1])
    if noise.padded:  # there a tail is one less the sum of what was kept, and that of little mass is rounding
        tail[np.maximum(*tails) < math.log(0.01)] = 0.0
    tail = tail.max(axis=1)
    same = (stored.ids == expected.ids) & (stored.log_probs == expected.log_probs)
    kept = (then > DEEPEST) if noise.padded else np.ones_like(then, dtype=np.bool_)
    errors = np.where(kept, abs(then - now), 0.0)
    for at, error in enumerate(errors):
        worst, least = int(error.argmax()), now[at].min(where=kept[at], initial=np.inf)
        allowed = noise.most + 2.5 * rounding[at]
        reason = ""
        if not error[worst] <= allowed:
            reason = (
                f"class {stored.ids[at, worst]} has log-probability {then[at, worst]:.3f}, the teacher gives "
                f"{now[at, worst]:.3f}"
            )
        elif rest[at] > least + 2 * allowed:
            reason = f"a class of log-probability {rest[at]:.3f} is missing, and one of {least:.3f} is kept"
        elif kept[at].any() and not tail[at] <= 4 * allowed:
            reason = f"its tail's log-mass differs by {tail[at]:.3f} nats from the teacher's"
        yield Verdict(at, reason, bool(same[at].all()), float(error[worst]), float(error[0]))


def _padded(targets: TopPTargets, width: int) -> TopKTargets:
    """The same with `width` classes each, those that fill up of probability 0."""
    counts = np.diff(targets.offsets)
    place = np.arange(width) < counts[:, None]
    ids = np.zeros(place.shape, dtype=np.int64)
    # What fills up stands for the likeliest class once more, so that no other is taken for stored.
    ids[:] = targets.ids[targets.offsets[:-1], None]
    log_probs = np.full(place.shape, -np.inf, dtype=np.float32)
    ids[place], log_probs[place] = targets.ids, targets.log_probs
    return TopKTargets(ids, log_probs, targets.betas, targets.tail_log_mass, targets.size)


def _vectors(
    chunk: Chunk, stored: EmbeddingTargets, expected: EmbeddingTargets, noise: Noise
) -> Iterator[Verdict]:
    raw = chunk.values.double().cpu().numpy()
    length = np.maximum(np.linalg.norm(raw, axis=1), 1e-12)
    error = np.linalg.norm(stored.vectors - expected.vectors, axis=1) / length
    rounding = np.linalg.norm(expected.vectors - raw, axis=1) / length
    for at, (off, rounded) in enumerate(zip(error.tolist(), rounding.tolist(), strict=True)):
        wrong = not off <= noise.most + 2.5 * rounded
        reason = f"its vector is {off:.1%} of the teacher's length away from the teacher's" if wrong else ""
        yield Verdict(at, reason, off == 0, off)


@dataclass(frozen=True)
class _Sparse:
    """One sparse target. heads: how many of its entries, the first ones, are its head."""

    ids: Ints
    weights: Floats
    heads: int

    @classmethod
    def of(cls, targets: SparseTargets, at: int) -> _Sparse:
        part = slice(*targets.offsets[at : at + 2])
        return cls(targets.ids[part], targets.weights[part].astype(np.float64), int(targets.head_counts[at]))

    def equals(self, other: _Sparse) -> bool:
        return (
            self.heads == other.heads
            and np.array_equal(self.ids, other.ids)
            and bool((abs(self.weights - other.weights) < 1e-6).all())
        )

    @property
    def head(self) -> Ints:
        return self.ids[: self.heads]

    def each(self, draws: int) -> _Sparse:
        """The same with one entry a draw, each of which is worth as much."""
        hits = np.rint(self.weights * draws).astype(np.int64)
        return _Sparse(np.repeat(self.ids, hits), np.full(int(hits.sum()), 1 / draws), 0)

    @property
    def draws(self) -> Ints:
        """Ascending."""
        return np.sort(self.ids[self.heads :])


def _sparse(
    chunk: Chunk, stored: SparseTargets, expected: SparseTargets, codec: Codec, noise: Noise
) -> Iterator[Verdict]:
    log_p, rounding = chunk.at(stored), _rounding(chunk, expected)
    running = chunk.running() if codec.draws else None
    for at in range(len(stored.offsets) - 1):
        ours, theirs = _Sparse.of(stored, at), _Sparse.of(expected, at)
        if ours.equals(theirs):
            yield Verdict(at, "", True, 0.0)
            continue
        p = np.exp(log_p[stored.offsets[at] :][: ours.heads])
        weights = ours.weights[: ours.heads]
        error = float(abs(np.log(np.maximum(weights, 1e-12)) - np.log(p)).max(initial=0.0))
        off = np.where(abs(weights - p) > noise.most * p + rounding(p), abs(weights - p), 0.0)
        if off.any():
            worst = int(off.argmax())
            given = f"the teacher gives {p[worst]:.4g}"
            reason = f"class {ours.head[worst]} has probability {weights[worst]:.4g}, {given}"
        elif running is not None and isinstance(codec, Threshold):
            reason = _membership(ours, theirs, p, chunk.log_p[at], codec.threshold, noise) or _draws(
                ours, theirs, p, running[at], codec.threshold, noise
            )
        elif running is not None and isinstance(codec, Sampled):
            reason = _draws(ours.each(codec.draws), theirs.each(codec.draws), p, running[at], 1.0, noise)
        else:
            reason = ""  # of what is not known to be drawn in the order of classes, the averages tell
        yield Verdict(at, reason, False, error)


def _membership(
    ours: _Sparse, theirs: _Sparse, p: Floats, log_p: torch.Tensor, threshold: float, noise: Noise
) -> str:
    """What is in the head and should not be, or should be and is not; "" if noise explains it."""
    for class_, given in zip(ours.head.tolist(), p.tolist(), strict=True):
        if given < threshold * (1 - noise.most):
            below = f"below the threshold of {threshold:g}"
            return f"class {class_} is in the head, and the teacher gives it {given:.4g}, {below}"
    for class_ in np.setdiff1d(theirs.head, ours.head).tolist():
        given = math.exp(float(log_p[class_]))
        if given > threshold * (1 + noise.most):
            return f"class {class_} of probability {given:.4g} is not in the head"
    return ""


def _draws(
    ours: _Sparse, theirs: _Sparse, p: Floats, running: torch.Tensor, threshold: float, noise: Noise
) -> str:
    """What was drawn that these random numbers do not draw; "" if noise explains it.

    A draw that noise moved fell on a class whose mass begins near where the other's ends. running: the sums
    of p in the order of classes, [V].
    """
    if not np.array_equal(np.sort(ours.head), np.sort(theirs.head)):
        return ""  # a class at the border of the head moves all draws
    mine, yours = ours.draws.tolist(), theirs.draws.tolist()
    if len(mine) != len(yours):
        whole = (1 - float(p.sum())) / threshold
        if abs(whole - round(whole)) > TAIL_ROUNDING + noise.most * max(1.0, whole):
            return f"{len(mine)} draws stand for its tail, and it takes {len(yours)}"
        return ""
    for drawn, expected in zip(mine, yours, strict=True):
        low, high = min(drawn, expected), max(drawn, expected)
        if high > low and float(running[high - 1] - running[low]) > 2 * noise.most:
            return f"class {drawn} was drawn, where the same random numbers draw class {expected}"
    return ""


def _rounding(chunk: Chunk, expected: SparseTargets) -> Callable[[Floats], Floats]:
    """A function of p: what the codec's own rounding may change of a head's probability, as measured."""
    owner = owners(expected)
    head = np.arange(len(owner)) - expected.offsets[owner] < expected.head_counts[owner]
    p = np.exp(chunk.at(expected)[head])
    changed = abs(expected.weights[head].astype(np.float64) - p)
    absolute, relative = float(changed.max(initial=0.0)), float((changed / p).max(initial=0.0))
    return lambda given: 2 * np.minimum(absolute, relative * given) + 3e-5


def softmax(targets: DenseTargets) -> Floats:
    """Probabilities, float64 [n, V]."""
    z = targets.logits.astype(np.float64)
    p: Floats = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    return p


def entries(targets: Targets) -> tuple[Ints, Ints, Floats]:
    """Of each stored class its target, its id and its probability."""
    match targets:
        case TopKTargets(ids, log_probs):
            n, k = ids.shape
            return (
                np.repeat(np.arange(n), k),
                ids.reshape(-1),
                np.exp(log_probs.astype(np.float64)).reshape(-1),
            )
        case TopPTargets(ids, log_probs):
            return owners(targets), ids, np.exp(log_probs.astype(np.float64))
        case SparseTargets():
            return owners(targets), targets.ids, targets.weights.astype(np.float64)
    raise TypeError(f"{type(targets).__name__} are no distributions")


def owners(targets: SparseTargets | TopPTargets) -> Ints:
    """The target of each entry, int64 [E]."""
    return np.repeat(np.arange(len(targets.offsets) - 1), np.diff(targets.offsets))
