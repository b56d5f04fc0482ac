"""One head's stored targets against what the teacher says now.

It knows logits and rows, and brings them together; where either comes from it does not know, and of a codec
it uses only what every codec has: that it encodes and decodes. Each target is judged by itself (`values`),
all of them on average (`averages`); here, whether they stand at their own tokens, and whether two classes
have each other's probability.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.audit.averages import STATISTICS, Averages
from pipeline.audit.values import DEEPEST, Chunk, Floats, Noise, compare, entries, softmax
from pipeline.targets.codecs.base import take, uniforms
from pipeline.targets.decoded import DenseTargets, SparseTargets, Targets
from pipeline.targets.plausibility import given_of, tokens_of
from pipeline.targets.rows import Rows
from pipeline.targets.shift import DISTRIBUTIONS, Shift, ShiftTest
from pipeline.targets.spec import Head
from pipeline.teachers.logits import Logits

if TYPE_CHECKING:
    import torch

ELEMENTS = 2**22
"""Logits compared at a time."""


@dataclass(frozen=True)
class Difference:
    """A target that is not what the teacher says. position: in its row; reason: as the rest of a sentence."""

    position: int
    reason: str


class HeadComparison:
    """All that is learned of one head, row by row."""

    def __init__(self, head: Head, seed: int, noise: Noise, fresh: np.random.Generator) -> None:
        """seed: of the store; fresh: of the random numbers that p̃ is encoded with.

        misfitting: of the targets that differ, those of an imported store whose likeliest class is right.
        """
        self.head, self.seed, self.noise = head, seed, noise
        self.targets = self.differing = self.misfitting = self.equal = 0
        self.worst = 0.0
        self.averages = Averages(head.codec, head.size, noise)
        self._fresh = fresh
        self._shift = ShiftTest()
        self._honest_fit = 0.0
        self._by_class = np.zeros(head.size)

    def row(self, logits: Logits, start: int, row: Rows) -> Iterator[Difference]:
        """Compare one row: what differs. Everything else is gathered for the results below.

        logits: a batch's, of the head's classes; start: the row's first place in the flattened ones.
        row: one, as stored, of n next-token targets with its n + 1 tokens. Raises ValueError when what the
        teacher says now cannot be encoded.
        """
        import torch

        head, codec = self.head, self.head.codec
        layout, stored, count = codec.layout(head.size), row.heads[head.name], int(row.counts(head)[0])
        tokens = tokens_of(row) if head.positions == "next_token" else None
        draws = uniforms(self.seed, head.name, row.keys[0], int(row.view[0]), count, codec.draws)
        given = np.ones(count, dtype=np.bool_) if tokens is None else given_of(row)
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
            encoded = codec.encode_torch(values, draws[first:last])
            expected = codec.decode(encoded, head.size)
            chunk = Chunk(values, wide[first - low : last - low], here, expected)
            self.targets += int(given[first:last].sum())
            for verdict in compare(chunk, codec, self.noise):
                if not given[first + verdict.at]:
                    continue
                self.worst, self.equal = max(self.worst, verdict.error), self.equal + verdict.equal
                if verdict.reason:
                    self.differing += 1
                    self.misfitting += self.noise.padded and verdict.likeliest <= self.noise.mean
                    yield Difference(first + verdict.at, verdict.reason)
            if isinstance(here, SparseTargets) and given.all():
                randoms = self._fresh.random((last - first, codec.draws))
                other = codec.decode(codec.encode_torch(values, randoms), head.size)
                assert isinstance(other, SparseTargets)
                labels = None if tokens is None else tokens[1:][first:last]
                self.averages.add(chunk, here, other, labels)
            if not isinstance(here, DISTRIBUTIONS):
                continue
            chosen = np.flatnonzero(given[first:last])
            self._classes(codec.decode(take(stored, layout, first + chosen), head.size), 1.0)
            self._classes(codec.decode(take(encoded, layout, chosen), head.size), -1.0)
            if tokens is not None:
                fits.append(_fits(here, wide, first, last, low))
                self._honest_fit += float(_fits(expected, wide, first, last, low)[chosen, 0].sum())
        if fits:
            assert tokens is not None
            inner = np.flatnonzero(given[1:-1]) + 1
            own, before, after = np.concatenate(fits)[inner].T
            # The teacher is known here, so all that repeats itself is the text.
            self._shift.add(tokens[inner] * 2**32 + tokens[inner + 1], own, before, after)

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
        return 3 + len(STATISTICS)  # two shifts, and the truncation

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

    def _classes(self, targets: Targets, sign: float) -> None:
        """Sum up, by class, what is stored (sign 1) and what should be (-1)."""
        if isinstance(targets, DenseTargets):
            self._by_class += sign * softmax(targets).sum(axis=0)
        else:
            _, ids, weights = entries(targets)
            self._by_class += np.bincount(ids, sign * weights, minlength=self.head.size)


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
            p = torch.from_numpy(softmax(targets)).to(wide.device)
            columns.append(torch.linalg.vecdot(p, log_p.clamp(min=DEEPEST)).cpu().numpy())
        else:
            owner, ids, weights = entries(targets)
            place = (owner + first - low + offset).clip(0, len(wide) - 1)
            at = torch.from_numpy(place).to(wide.device), torch.from_numpy(ids).to(wide.device)
            scores = weights * wide[at].double().cpu().numpy().clip(DEEPEST)
            columns.append(np.bincount(owner, scores, minlength=last - first).astype(np.float64))
    return np.stack(columns, axis=1)
