"""Stored targets against what the teacher says now: value by value, on average, and one position off.

It knows logits and decoded targets; where either comes from it does not know, and of a codec it uses only
what every codec has: that it encodes and decodes.

Values. The teacher's logits are encoded again with the same random numbers. What comes out is what the store
should hold, but for what two honest computations of the same logits may differ by (`Noise`), and for the
codec's own rounding, which is measured here as what encoding changes.

On average. Where noise moves a draw, bytes differ and nothing is wrong, so unbiasedness is tested without
them. Let p̂ be the stored target, p̃ the teacher's distribution encoded with fresh random numbers, and f any
function of the classes that does not depend on either. If the store is honest, p̂ and p̃ have the same
distribution, so d = <p̂, f> - <p̃, f> is symmetric about 0 and independent from target to target; then
(Hoeffding, conditional on all |d|)

    P(|Σ d| >= x sqrt(Σ d²)) <= 2 exp(-x²/2),

whatever the codec, the teacher and the number of targets. No variance is estimated and no normal distribution
assumed. With <p, f> in place of <p̃, f> the sum would vary half as much, but d would not be symmetric, and for
rare classes the bound would not hold. What p itself may be off by is allowed on top.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipeline.targets.codecs import Threshold
from pipeline.targets.codecs.base import take, uniforms
from pipeline.targets.decoded import DenseTargets, SparseTargets, Targets, TopKTargets
from pipeline.targets.errors import SpecMismatch
from pipeline.targets.plausibility import Shift, ShiftTest, alarm
from pipeline.targets.rows import Rows
from pipeline.targets.spec import Head
from pipeline.teachers.logits import Logits

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

ELEMENTS = 2**22
"""Logits compared at a time."""

DEEPEST = -30.0
"""Log-probabilities below are taken as this: what is as unlikely as that differs freely."""

SMALL = 0.02
"""Border of head and tail for the statistics of a codec that has none."""


@dataclass(frozen=True)
class Noise:
    """What two honest computations of a log-probability may differ by, nats.

    mean: systematically, over many; most: any single one.
    """

    mean: float
    most: float

    @classmethod
    def of(cls, exact: bool, imported: bool) -> Noise:
        """exact: the teacher computes in float32 or better. imported: by other software, perhaps of a fit."""
        if imported:
            return cls(0.05, 0.5)
        return cls(5e-4, 5e-3) if exact else cls(0.03, 0.3)


@dataclass(frozen=True)
class Difference:
    """A target that is not what the teacher says. position: in its row; reason: as the rest of a sentence."""

    position: int
    reason: str


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


class HeadComparison:
    """All that is learned of one head, row by row."""

    def __init__(self, head: Head, seed: int, noise: Noise, fresh: np.random.Generator) -> None:
        """seed: of the store; fresh: of the random numbers that p̃ is encoded with."""
        self.head, self.seed, self.noise = head, seed, noise
        self.targets = self.differing = self.equal = 0
        self.worst = 0.0
        self._fresh = fresh
        self._border = head.codec.threshold if isinstance(head.codec, Threshold) else SMALL
        self._shift = ShiftTest()
        self._honest_fit = 0.0
        self._sums: dict[str, Floats] = {}
        self._by_class = np.zeros(head.size)
        self._truncated = np.zeros(3)

    def row(self, logits: Logits, start: int, row: Rows, tokens: Ints | None) -> Iterator[Difference]:
        """Compare one row: what differs. Everything else is gathered for the results below.

        logits: a batch's; start: the row's first place in the flattened ones. row: one, as stored.
        tokens: int64 [n + 1] of a row with n next-token targets. Raises ValueError when what the teacher says
        now cannot be encoded.
        """
        import torch

        head, codec = self.head, self.head.codec
        layout, stored, count = codec.layout(head.size), row.heads[head.name], int(row.counts(head)[0])
        draws = uniforms(self.seed, head.name, row.keys[0], int(row.view[0]), count, codec.draws)
        step = max(1, ELEMENTS // head.size)
        fits: list[Floats] = []
        for first in range(0, count, step):
            last = min(first + step, count)
            low, high = max(first - 1, 0), min(last + 1, count)  # a neighbour at each side, for the shift
            with torch.inference_mode():
                wide = logits.rows(torch.arange(start + low, start + high)).float()
                values = wide[first - low : last - low]
                wide = torch.log_softmax(wide, dim=1)
            here = codec.decode(take(stored, layout, np.arange(first, last)), head.size)
            expected = codec.decode(codec.encode_torch(values, draws[first:last]), head.size)
            chunk = _Chunk(values, wide[first - low : last - low], here, expected)
            self.targets += last - first
            for at, reason, error in self._compare(chunk):
                self.worst = max(self.worst, error)
                if reason:
                    self.differing += 1
                    yield Difference(first + at, reason)
            if isinstance(here, SparseTargets):
                randoms = self._fresh.random((last - first, codec.draws))
                other = codec.decode(codec.encode_torch(values, randoms), head.size)
                assert isinstance(other, SparseTargets)
                self._average(chunk, here, other, None if tokens is None else tokens[1:][first:last])
            self._exchange(here, expected)
            if tokens is not None:
                fits.append(_fits(here, wide, first, last, low))
                self._honest_fit += float(_fits(expected, wide, first, last, low)[:, 0].sum())
        if fits:
            own, before, after = np.concatenate(fits)[1:-1].T
            assert tokens is not None
            # The teacher is known here, so all that repeats itself is the text.
            self._shift.add(tokens[1:-2] * 2**32 + tokens[2:-1], own, before, after)

    # What came out

    def shift(self, tests: int) -> Shift:
        """Whether the targets are those of a neighbouring token, by -H(p̂, p) under the three hypotheses.

        Another teacher's targets may also fit a neighbour a little better. Those that were shifted fit it as
        well as honest ones fit their own token, so at least half of what is missing to that is asked for.
        tests: how many the whole audit takes.
        """
        own = self._shift.result(tests).own
        missing = self._honest_fit / max(self.targets, 1) - own
        return self._shift.result(tests, max(2 * self.noise.mean, missing / 2))

    @property
    def tests(self) -> int:
        """Statistical tests that this head takes, for the level they share."""
        return 2 + len(_STATISTICS)

    def biases(self, tests: int) -> list[Bias]:
        """Each statistic; tests: how many the whole audit takes. Empty for a codec that draws nothing."""
        found = []
        for name, (total, squares, mass) in self._sums.items():
            beyond = max(0.0, abs(total) - self.noise.mean * mass)
            z = beyond / math.sqrt(squares) if squares else 0.0
            found.append(Bias(name, total / max(self.targets, 1), z, alarm(tests)))
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
            f"declared {self.head.codec.kind} but truncated top-k: the stored classes are exactly the "
            f"teacher's likeliest, and of the {beyond / self.targets:.1%} of its probability beyond them "
            "nothing was ever drawn"
        )

    def exchanged(self) -> tuple[int, int] | None:
        """Two classes each of which has the probability of the other, if that is what most of it is."""
        order = np.argsort(-abs(self._by_class), kind="stable")[:3]
        if len(order) < 2:
            return None
        a, b = self._by_class[order[:2]]
        third = abs(self._by_class[order[2]]) if len(order) > 2 else 0.0
        if abs(a + b) > 0.2 * abs(a) or min(abs(a), abs(b)) < max(5 * third, 0.5):
            return None
        return int(min(order[:2])), int(max(order[:2]))

    # How

    def _compare(self, chunk: _Chunk) -> Iterator[tuple[int, str, float]]:
        """For each target its place, what is wrong with it ("" if nothing), and its largest error in nats."""
        match chunk.stored, chunk.expected:
            case DenseTargets(), DenseTargets():
                return self._dense(chunk, chunk.stored.logits, chunk.expected.logits)
            case TopKTargets(), TopKTargets():
                return self._topk(chunk, chunk.stored, chunk.expected)
            case SparseTargets(), SparseTargets():
                return self._sparse(chunk, chunk.stored, chunk.expected)
        raise SpecMismatch(
            f"head {self.head.name} is {self.head.codec.kind}, which an audit cannot compare yet"
        )

    def _dense(
        self, chunk: _Chunk, stored: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]
    ) -> Iterator[tuple[int, str, float]]:
        raw = chunk.values.cpu().numpy()
        with np.errstate(invalid="ignore"):
            rounding = np.nan_to_num(abs(expected - raw), nan=0.0).max(axis=1)
            error = np.where(stored == expected, 0.0, abs(stored - expected))
        for at, (row, rounded) in enumerate(zip(error, rounding, strict=True)):
            worst = int(row.argmax())
            self.equal += not row.any()
            allowed = self.noise.most * max(1.0, float(np.abs(raw[at][np.isfinite(raw[at])]).max()) / 20)
            wrong = not row[worst] <= allowed + 2.5 * rounded
            reason = (
                f"class {worst} has the logit {stored[at, worst]:.4g}, the teacher gives "
                f"{expected[at, worst]:.4g}"
            )
            yield at, reason if wrong else "", float(row[worst])

    def _topk(
        self, chunk: _Chunk, stored: TopKTargets, expected: TopKTargets
    ) -> Iterator[tuple[int, str, float]]:
        import torch

        count, k = stored.ids.shape
        ids = torch.from_numpy(stored.ids).to(chunk.log_p.device)
        now = chunk.log_p.gather(1, ids).double().cpu().numpy().clip(DEEPEST)
        rest = chunk.log_p.scatter(1, ids, -torch.inf).max(dim=1).values.double().cpu().numpy()
        rounding = np.abs(
            expected.log_probs.astype(np.float64)
            - chunk.log_p.gather(1, torch.from_numpy(expected.ids).to(ids.device)).double().cpu().numpy()
        )
        then = stored.log_probs.astype(np.float64).clip(DEEPEST)
        with np.errstate(invalid="ignore"):
            rounding = np.nan_to_num(rounding, nan=0.0, posinf=0.0).max(axis=1, initial=0.0)
            tails = stored.tail_log_mass.astype(np.float64).clip(DEEPEST)
            tail = abs(tails - expected.tail_log_mass.astype(np.float64).clip(DEEPEST)).max(axis=1)
        same = (stored.ids == expected.ids).all(axis=1) & (stored.log_probs == expected.log_probs).all(axis=1)
        self.equal += int(same.sum())
        for at in range(count):
            error = abs(then[at] - now[at])
            worst = int(error.argmax())
            allowed = self.noise.most + 2.5 * rounding[at]
            reason = ""
            if not error[worst] <= allowed:
                reason = (
                    f"class {stored.ids[at, worst]} has log-probability {then[at, worst]:.3f}, the teacher "
                    f"gives {now[at, worst]:.3f}"
                )
            elif k < self.head.size and rest[at] > now[at].min() + 2 * allowed:
                reason = (
                    f"a class of log-probability {rest[at]:.3f} is missing, and one of {now[at].min():.3f} "
                    "is kept"
                )
            elif not tail[at] <= 4 * allowed:
                reason = f"its tail's log-mass differs by {tail[at]:.3f} nats from the teacher's"
            yield at, reason, float(error[worst])

    def _sparse(
        self, chunk: _Chunk, stored: SparseTargets, expected: SparseTargets
    ) -> Iterator[tuple[int, str, float]]:
        log_p = chunk.at(stored)
        error_of_codec = self._rounding(chunk, expected)
        cumulated = chunk.cumulated() if self.head.codec.draws else None
        most = self.noise.most
        for at in range(len(stored.offsets) - 1):
            ours, theirs = slice(*stored.offsets[at : at + 2]), slice(*expected.offsets[at : at + 2])
            ids, weights = stored.ids[ours], stored.weights[ours].astype(np.float64)
            wanted, worth = expected.ids[theirs], expected.weights[theirs].astype(np.float64)
            h, w = int(stored.head_counts[at]), int(expected.head_counts[at])
            if (
                len(ids) == len(wanted)
                and h == w
                and (ids == wanted).all()
                and abs(weights - worth).max() < 1e-6
            ):
                self.equal += 1
                yield at, "", 0.0
                continue
            p = np.exp(log_p[ours].clip(DEEPEST))
            error = abs(np.log(np.maximum(weights[:h], 1e-12)) - np.log(p[:h]))
            allowed = most * p[:h] + error_of_codec(p[:h])
            off = abs(weights[:h] - p[:h]) > allowed
            yield (
                at,
                self._why(chunk, at, ids, h, weights, p, off, wanted, w, cumulated),
                float(error.max(initial=0.0)),
            )

    def _why(
        self,
        chunk: _Chunk,
        at: int,
        ids: Ints,
        h: int,
        weights: Floats,
        p: Floats,
        off: npt.NDArray[np.bool_],
        wanted: Ints,
        w: int,
        cumulated: torch.Tensor | None,
    ) -> str:
        """What is wrong with a sparse target whose bytes are not those expected; "" if noise explains it."""
        most = self.noise.most
        if off.any():
            worst = int(np.argmax(np.where(off, abs(weights[:h] - p[:h]), 0)))
            return (
                f"class {ids[worst]} has probability {weights[worst]:.4g}, the teacher gives {p[worst]:.4g}"
            )
        if isinstance(self.head.codec, Threshold):
            low = p[:h] < self._border * (1 - most)
            if low.any():
                worst = int(np.argmax(low))
                return (
                    f"class {ids[worst]} is in the head, and the teacher gives it {p[worst]:.4g}, below the "
                    f"threshold of {self._border:g}"
                )
            for missing in np.setdiff1d(wanted[:w], ids[:h]):
                given = math.exp(float(chunk.log_p[at, int(missing)]))
                if given > self._border * (1 + most):
                    return f"class {missing} of probability {given:.4g} is not in the head"
        ours, theirs = np.sort(ids[h:]), np.sort(wanted[w:])
        if h != w or cumulated is None or not isinstance(self.head.codec, Threshold):
            return ""  # a class at the very border moves all draws
        if len(ours) != len(theirs):
            share = max(0.0, 1 - float(p[:h].sum())) / self._border
            if abs(share - round(share)) > most * max(1.0, share):
                return f"{len(ours)} draws stand for its tail, and it takes {len(theirs)}"
            return ""
        # A draw that noise moved fell on a class whose mass begins near where the other's ends.
        ends = cumulated[at]
        for mine, theirs_ in zip(ours.tolist(), theirs.tolist(), strict=True):
            low, high = min(mine, theirs_), max(mine, theirs_)
            between = float(ends[high - 1] - ends[low]) if high > low else 0.0
            if between > 2 * most:
                return f"class {mine} was drawn, where the same random numbers draw class {theirs_}"
        return ""

    def _rounding(self, chunk: _Chunk, expected: SparseTargets) -> Callable[[Floats], Floats]:
        """A function of p: what the codec's own rounding may change of a head's probability, as measured."""
        owner = _owners(expected)
        place = np.arange(len(owner)) - expected.offsets[owner]
        head = place < expected.head_counts[owner]
        p = np.exp(chunk.at(expected)[head].clip(DEEPEST))
        changed = abs(expected.weights[head].astype(np.float64) - p)
        absolute = float(changed.max(initial=0.0))
        relative = float((changed / p).max(initial=0.0))
        return lambda given: 2 * np.minimum(absolute, relative * given) + 3e-5

    def _average(
        self, chunk: _Chunk, stored: SparseTargets, fresh: SparseTargets, labels: Ints | None
    ) -> None:
        top = chunk.log_p.argmax(dim=1).cpu().numpy()
        count = len(top)
        sides = [_Entries(t.ids, _owners(t), chunk.at(t), top, labels, self._border) for t in (stored, fresh)]
        for name, statistic in _STATISTICS.items():
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

    def _truncation(self, chunk: _Chunk, entries: _Entries, count: int) -> Floats:
        """The probability beyond a target's classes where these are exactly the likeliest, else 0; [n].

        Less than a hundredth counts as nothing.
        """
        import torch

        least = np.zeros(count)
        np.minimum.at(least, entries.owner, entries.log_p)
        distinct, first = np.unique(entries.owner * self.head.size + entries.ids, return_index=True)
        kept = np.bincount(distinct // self.head.size, minlength=count)
        beyond = 1 - np.bincount(entries.owner[first], np.exp(entries.log_p[first]), minlength=count)
        border = torch.from_numpy(least + self.noise.most).to(chunk.log_p.device)[:, None]
        likelier = (chunk.log_p > border).sum(dim=1).cpu().numpy()
        return np.where((likelier <= kept) & (beyond > 0.01), beyond, 0.0)

    def _exchange(self, stored: Targets, expected: Targets) -> None:
        for sign, targets in ((1.0, stored), (-1.0, expected)):
            if isinstance(targets, DenseTargets):
                self._by_class += sign * _softmax(targets).sum(axis=0)
            else:
                _, ids, weights = _entries(targets)
                self._by_class += np.bincount(ids, sign * weights, minlength=self.head.size)


@dataclass
class _Chunk:
    """Some targets of a row. values: the teacher's logits [n, V]; log_p: their log-softmax, float32."""

    values: torch.Tensor
    log_p: torch.Tensor
    stored: Targets
    expected: Targets

    def at(self, targets: SparseTargets) -> Floats:
        """log p of each entry, at least DEEPEST, float64 [E]."""
        import torch

        owner = _owners(targets)
        device = self.log_p.device
        picked = self.log_p[torch.from_numpy(owner).to(device), torch.from_numpy(targets.ids).to(device)]
        found: Floats = picked.double().cpu().numpy().clip(DEEPEST)
        return found

    def cumulated(self) -> torch.Tensor:
        """Running sums of p in the order of classes, float64 [n, V], on the host."""
        return self.log_p.double().exp().cumsum(dim=1).cpu()


def _fits(targets: Targets, wide: torch.Tensor, first: int, last: int, low: int) -> Floats:
    """Σ p̂ log p of the teacher's targets at the same place, one before and one after; float64 [n, 3].

    wide: the teacher's log-probabilities of the targets from `low` on, with a neighbour at each side where
    the row has one; elsewhere the value is of no use.
    """
    import torch

    columns: list[Floats] = []
    for offset in (0, -1, 1):
        if isinstance(targets, DenseTargets):
            place = np.arange(first, last) - low + offset
            log_p = wide[torch.from_numpy(place.clip(0, len(wide) - 1)).to(wide.device)].double()
            p = torch.from_numpy(_softmax(targets)).to(wide.device)
            columns.append(torch.linalg.vecdot(p, log_p.clamp(min=DEEPEST)).cpu().numpy())
        else:
            owner, ids, weights = _entries(targets)
            place = (owner + first - low + offset).clip(0, len(wide) - 1)
            at = torch.from_numpy(place).to(wide.device), torch.from_numpy(ids).to(wide.device)
            scores = weights * wide[at].double().cpu().numpy().clip(DEEPEST)
            columns.append(np.bincount(owner, scores, minlength=last - first).astype(np.float64))
    return np.stack(columns, axis=1)


def _softmax(targets: DenseTargets) -> Floats:
    """Probabilities, float64 [n, V]."""
    z = targets.logits.astype(np.float64)
    p: Floats = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    return p


def _entries(targets: Targets) -> tuple[Ints, Ints, Floats]:
    """Of each stored class its target, its id and its probability."""
    match targets:
        case TopKTargets(ids, log_probs):
            n, k = ids.shape
            return (
                np.repeat(np.arange(n), k),
                ids.reshape(-1),
                np.exp(log_probs.astype(np.float64)).reshape(-1),
            )
        case SparseTargets():
            return _owners(targets), targets.ids, targets.weights.astype(np.float64)
    raise TypeError(f"{type(targets).__name__} are no distributions")


def _owners(targets: SparseTargets) -> Ints:
    """The target of each entry, int64 [E]."""
    return np.repeat(np.arange(len(targets.offsets) - 1), np.diff(targets.offsets))


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


_STATISTICS: dict[str, Callable[[_Entries], Floats]] = {
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
