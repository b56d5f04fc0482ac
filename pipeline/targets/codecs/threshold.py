"""Threshold: the likely classes with their probability, and an unbiased sample of all the others.

Knows how one distribution becomes a handful of entries and back; knows nothing of rows, files or models.

Let p be the softmax of a target's logits and lambda the codec's `threshold`.

* The *head* is every class with p_i >= lambda; it is kept. The *tail* is the rest, of mass R.
* The tail is sampled in n *systematic* draws of about lambda each: with one uniform u, the points
  (u + j) R/n, j = 0 .. n - 1, are laid on the running mass of the tail in id order, and each falls on one
  class. A draw is an id alone, worth the n-th part of the tail. As R/n may be a little less than a tail
  class's p_i, a class can be drawn twice; its id is then stored twice.

Values are one byte each, rounded up or down at random so that their expectation is what they stand for; v is
the target's second uniform.

* The tail's mass is stored as m = floor(16 R/lambda + v) parts of lambda/16: n = ceil(m/16), and the byte is
  m - 16 (n - 1) - 1. If m = 0 there is nothing to share out and no draw.
* A head class that is not the likeliest has lambda <= p <= 1/2, and lies between two of 64 values in
  geometric progression from lambda to 1/2. It becomes the upper one with the probability f that makes the
  mean right, and all of a target's at once: of the fractions f in the order of falling p, F_i being their
  running sums, class i goes up if floor(F_i + v) > floor(F_(i-1) + v).
* The likeliest head class has no value: it is what the others and the tail leave of 1.
* Without any head class, R = 1 is known, n = ceil(1/lambda), and nothing but ids is stored.

Unbiased: floor(S + v) has the mean S, which settles R and the f of each head class; the likeliest one is 1
minus unbiased estimates. A tail class owns p_i n/R of the n equal steps that the points stand in, so given n
it is hit p_i n/R times on average, each worth Q/n with Q the stored mass. Given n, hits depend on u alone and
Q on v alone, and u and v are independent: E p_hat_i = E[(p_i n/R) (Q/n)] = p_i E[Q]/R = p_i.

Non-negative: the running sums of "went up" and of f differ by less than 1, and steps fall with p, so (Abel)
all that the other head classes gain together is less than one step of the largest of them, at most
p ((1 / (2 lambda))^(1/63) - 1) <= 0.13 p for lambda >= 1/4096; with the tail's lambda/16 that is less than
the likeliest has.

Least variance: of all unbiased estimates with a given expected number of entries, the one with the least
squared error, and the least KL, keeps the heavy coordinates as they are and gives all sampled ones one
common value (Barnes et al., "Efficient Unbiased Sparsification", arXiv 2402.14925). A threshold on the mass
is also the form of VarOpt (Cohen et al., SODA 2009) and priority sampling (Duffield et al., JACM 2007);
systematic draws (Madow, 1949) reach it with a fixed n, since the hits of one class never differ by more
than one. This codec is that optimum, but that n is rounded up to an integer so that the sum is exact. One
lambda for all targets is what the least total variance at a given total number of entries asks for. The
values' rounding adds a relative standard deviation of at most half a step (2.6 % at lambda = 0.02) to a head
class, and at most lambda/32 to the tail's mass. The draws' own variance is about lambda R.

On disk, ids are ascending within the head (behind the likeliest) and within the tail, and stored as gaps: see
`gaps`. docs/codecs.md has what else was tried.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from pipeline.targets.codecs import base, gaps
from pipeline.targets.codecs.base import (
    Array,
    Codec,
    Column,
    Encoded,
    Field,
    NonFiniteLogits,
    id_dtype,
)
from pipeline.targets.decoded import SparseTargets
from pipeline.targets.ragged import Ragged, offsets_of, ranges

if TYPE_CHECKING:
    import torch

PARTS = 16
"""Parts of the threshold that the tail's mass is counted in."""

VALUES = 64
"""Probabilities that a head class which is not the likeliest can have."""

LARGEST = 0.5
"""Probability of a head class that is not the likeliest, at most."""

CHUNK = 2**15
"""Entries unpacked at a time, or those of one row."""

TARGETS = 2**12
"""Targets decoded at a time."""


@dataclass(frozen=True)
class Threshold(Codec):
    """Classes of at least `threshold`, and unbiased draws of the rest."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "use_attribute_docstrings": True}
    draws: ClassVar[int] = 2

    kind: Literal["threshold"] = field(default="threshold", kw_only=True)
    """Likely classes, and an unbiased sample of the others."""

    threshold: float = 0.02
    """Classes of at least this probability are kept, the others' mass is sampled in draws of about this size.
    Between 1/4096 and 0.5; smaller stores more and varies less."""

    def __post_init__(self) -> None:
        if not isinstance(self.threshold, float) or not 1 / 4096 <= self.threshold <= 0.5:
            raise ValueError(f"threshold: must be between 1/4096 and 0.5, got {self.threshold!r}")

    @property
    def _headless_draws(self) -> int:
        """Draws of a target without a head class."""
        return math.ceil(1 / self.threshold)

    def _grid(self) -> npt.NDArray[np.float64]:
        """The values of a head class that is not the likeliest, float64 [VALUES], rising."""
        return np.geomspace(self.threshold, LARGEST, VALUES)

    def layout(self, size: int) -> tuple[Field, ...]:
        """Counts are one byte each if 1 / threshold <= 254.

        ids: of each target the head, the likeliest first and the others ascending, and then the tail's draws,
        ascending, with repetitions. values: of the likeliest the byte of the tail's mass (0 without a draw),
        of the other head classes their places in the geometric progression.
        """
        count = "|u1" if self._headless_draws < 255 else "<u2"
        return (
            Field("count", count),
            Field("head_count", count),
            Field("ids", id_dtype(size), counted_by="count"),
            Field("values", "|u1", counted_by="head_count"),
        )

    def columns(self, size: int) -> tuple[Column, ...]:
        """Counts and values as they are; the ids of head and tail as the codes and bits of their gaps."""
        count = self.layout(size)[0].dtype
        return (
            Column("count", count, per_target=True),
            Column("head_count", count, per_target=True),
            Column("values", "|u1"),
            *(Column(f"{part}_{what}", "|u1") for part in ("head", "tail") for what in ("codes", "bits")),
        )

    def pack(self, encoded: Encoded, counts: npt.NDArray[np.int64], size: int) -> dict[str, Ragged]:
        """See `Codec.pack`. The gap of the likeliest class, of the first behind it and of the first draw is
        from 0.
        """
        bounds = offsets_of(counts)
        heads = encoded["head_count"].astype(np.int64)
        tails = encoded["count"].astype(np.int64) - heads
        first, ids = offsets_of(encoded["count"])[:-1], encoded["ids"].astype(np.int64)
        packed = {name: Ragged(encoded[name], bounds) for name in ("count", "head_count")}
        packed["values"] = Ragged(encoded["values"], offsets_of(heads)[bounds])
        for part, starts, lengths in (("head", first, heads), ("tail", first + heads, tails)):
            places = ranges(starts, lengths)
            steps = ids[places]
            steps[1:] -= ids[places[:-1]]
            offsets = offsets_of(lengths)
            begins = offsets[:-1][lengths > 0]
            steps[begins] = ids[places[begins]]
            if part == "head":
                seconds = offsets[:-1][lengths > 1] + 1
                steps[seconds] = ids[places[seconds]]
            codes, packed[f"{part}_bits"] = gaps.encode(steps, offsets[bounds])
            packed[f"{part}_codes"] = Ragged(codes, offsets[bounds])
        return {column.name: packed[column.name] for column in self.columns(size)}

    def unpack(self, stored: Mapping[str, Ragged], counts: npt.NDArray[np.int64], size: int) -> Encoded:
        """See `Codec.unpack`. Some rows at a time, so that what is in between stays in the cache."""
        bounds = offsets_of(counts)
        for name in ("count", "head_count"):
            if not np.array_equal(stored[name].offsets, bounds):
                raise ValueError(f"{name} disagrees with the targets of its row")
        count, head_count = stored["count"].values, stored["head_count"].values
        if (head_count > count).any():
            raise ValueError("head_count is more than all entries of a target")
        heads, entries = offsets_of(head_count), offsets_of(count)
        for name, expected in (
            ("values", heads[bounds]),
            ("head_codes", heads[bounds]),
            ("tail_codes", (entries - heads)[bounds]),
        ):
            if not np.array_equal(stored[name].offsets, expected):
                raise ValueError(f"{name} disagrees with the counts of its row")
        values = stored["values"].values
        if len(values) and (
            int(values.max()) >= VALUES or int(values[heads[:-1][head_count > 0]].max()) >= PARTS
        ):
            raise ValueError("values holds one that is none")
        ids = np.empty(int(entries[-1]), dtype=id_dtype(size))
        row = 0
        while row < len(counts):
            stop = max(row + 1, int(np.searchsorted(entries[bounds], entries[bounds[row]] + CHUNK)))
            stop = min(stop, len(counts))
            some = slice(int(bounds[row]), int(bounds[stop]))
            codes, bits = (
                [stored[f"{part}_{what}"].slice(row, stop) for part in ("head", "tail")]
                for what in ("codes", "bits")
            )
            try:
                ids[entries[some.start] : entries[some.stop]] = _ids(
                    codes, bits, count[some].astype(np.int64), head_count[some].astype(np.int64), size
                )
            except ValueError as error:
                raise ValueError(f"head_codes and tail_codes: {error}") from error
            row = stop
        return {"count": count, "head_count": head_count, "ids": ids, "values": values}

    def encode(self, logits: Array, uniforms: Array) -> Encoded:
        """See `Codec.encode`; uniforms are u and v of each target."""
        bad = ~np.isfinite(logits.max(axis=1))
        if bad.any():
            raise NonFiniteLogits(bad)
        size = logits.shape[1]
        parts = [self._encode_one(row, u, v, size) for row, (u, v) in zip(logits, uniforms, strict=True)]
        return base.concatenate(parts, self.layout(size))

    def _encode_one(self, logits: Array, u: float, v: float, size: int) -> Encoded:
        """One target, [V]: the module's docstring, line by line."""
        mass = np.exp(logits.astype(np.float64) - np.float64(logits.max()))
        is_head = mass >= self.threshold * mass.sum()
        running = np.cumsum(np.where(is_head, 0.0, mass))
        tail, total = running[-1], running[-1] + mass[is_head].sum()
        head = np.flatnonzero(is_head)
        if len(head):
            parts = math.floor(PARTS * (tail / total / self.threshold) + v)
            draws = math.ceil(parts / PARTS)
            falling = head[np.argsort(-mass[head], kind="stable")]
            places = _round(mass[falling[1:]] / total, v, self._grid())
            order = np.argsort(falling[1:])
            head = np.concatenate([falling[:1], falling[1:][order]])
            values = np.concatenate([[parts - PARTS * (draws - 1) - 1 if draws else 0], places[order]])
        else:
            draws, values = self._headless_draws, np.zeros(0)
        points = (u + np.arange(draws)) / max(draws, 1) * tail
        # The last point may round up to the whole tail; it belongs to the last class that has any mass.
        drawn = np.searchsorted(running, np.minimum(points, np.nextafter(tail, 0.0)), side="right")
        columns = (len(head) + draws, len(head), np.concatenate([head, drawn]), values)
        return {
            stored.name: np.atleast_1d(column).astype(stored.dtype)
            for stored, column in zip(self.layout(size), columns, strict=True)
        }

    def encode_torch(self, logits: torch.Tensor, uniforms: Array) -> Encoded:
        """The same on the tensor's device, in one pass over the logits.

        Probabilities are float32 (float64 for float64 logits), their running sums float64. The result is that
        of `encode` unless rounding decides: a probability within 1e-6 (relative) of the threshold, or of the
        likeliest other one; a point within 1e-6 of the border between two classes, whose neighbour it then
        takes; parts of the tail or running fractions within 1e-2 of a whole number, and a value is the next
        one. Probabilities below 1e-38 count as zero. A target's result does not depend on the others in the
        call.
        """
        from pipeline.targets.codecs import threshold_torch

        columns = threshold_torch.encode(
            logits, uniforms, self.threshold, PARTS, self._headless_draws, self._grid()
        )
        return {
            stored.name: column.astype(stored.dtype)
            for stored, column in zip(self.layout(logits.shape[1]), columns, strict=True)
        }

    def decode(self, encoded: Encoded, size: int) -> SparseTargets:
        """See `SparseTargets`."""
        heads, counts = encoded["head_count"].astype(np.int64), encoded["count"].astype(np.int64)
        offsets, firsts = offsets_of(counts), offsets_of(heads)
        weights, grid = np.empty(int(offsets[-1]), dtype=np.float32), self._grid()
        for start in range(0, len(counts), TARGETS):
            stop = min(start + TARGETS, len(counts))
            some = slice(start, stop)
            values = encoded["values"][firsts[start] : firsts[stop]]
            weights[offsets[start] : offsets[stop]] = self._weights(values, counts[some], heads[some], grid)
        return SparseTargets(encoded["ids"].astype(np.int64), weights, offsets, heads, size)

    def _weights(
        self, stored: Array, counts: npt.NDArray[np.int64], heads: npt.NDArray[np.int64], grid: Array
    ) -> npt.NDArray[np.float32]:
        """Of some targets' entries. stored: their values."""
        tails, left = counts - heads, self._left(stored, counts, heads)
        values = grid[stored.astype(np.intp)]
        if len(likeliest := offsets_of(heads)[:-1][heads > 0]):
            values[likeliest] = 0.0
            values[likeliest] = 1.0 - left[heads > 0] - np.add.reduceat(values, likeliest)
        weights = np.repeat((left / np.maximum(tails, 1)).astype(np.float32), counts)
        weights[ranges(offsets_of(counts)[:-1], heads)] = values
        return weights

    def _left(
        self, values: Array, counts: npt.NDArray[np.int64], heads: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        """The tail's mass of each target, float64 [N]: its likeliest class says, without a head it is 1."""
        tails = counts - heads
        parts = PARTS * (tails - 1) + np.append(values, 0)[offsets_of(heads)[:-1]] + 1
        return np.where(heads == 0, 1.0, np.where(tails > 0, parts * (self.threshold / PARTS), 0.0))

    def statistics(self, encoded: Encoded, size: int) -> dict[str, float]:
        """entries: stored ids; captured_mass: the head's probability; payload_bytes per target."""
        n = len(encoded["count"])
        if n == 0:
            return {"entries": 0.0, "captured_mass": 0.0, "payload_bytes": 0.0}
        heads, counts = encoded["head_count"].astype(np.int64), encoded["count"].astype(np.int64)
        return {
            "entries": len(encoded["ids"]) / n,
            "captured_mass": 1 - float(self._left(encoded["values"], counts, heads).mean()),
            "payload_bytes": sum(array.nbytes for array in encoded.values()) / n,
        }


def _ids(
    codes: Sequence[Ragged],
    bits: Sequence[Ragged],
    counts: npt.NDArray[np.int64],
    heads: npt.NDArray[np.int64],
    size: int,
) -> npt.NDArray[np.uint32]:
    """The ids of some targets, head and tail of each together. codes, bits: of the head, of the tail."""
    both, lengths = Ragged.concatenate(codes), np.concatenate([heads, counts - heads])
    found = gaps.decode(both.values, Ragged.concatenate(bits), both.offsets)
    # The head's others count from 0: take back the likeliest.
    likeliest = offsets_of(heads)[:-1][heads > 1]
    found[likeliest + 1] -= found[likeliest]
    # One running sum over all, modulo 2**32, from which each takes back what was before it.
    np.cumsum(found, out=found)
    before = np.concatenate([np.zeros(1, np.uint32), found])[offsets_of(lengths)[:-1]]
    found -= np.repeat(before, lengths)
    if len(found) and int(found.max()) >= size:
        raise ValueError(f"a class is beyond the {size} of the head")
    ids, in_tail = np.empty_like(found), np.ones(len(found), dtype=np.bool_)
    head = ranges(offsets_of(counts)[:-1], heads)
    in_tail[head] = False
    ids[head], ids[np.flatnonzero(in_tail)] = found[: len(head)], found[len(head) :]
    return ids


def _round(falling: Array, v: float, grid: Array) -> Array:
    """Places in the grid of probabilities in falling order, each with the right mean; int64 [k]."""
    low = np.clip(np.searchsorted(grid, falling, side="right") - 1, 0, VALUES - 2)
    width = grid[low + 1] - grid[low]
    up = np.clip(np.divide(falling - grid[low], width, out=np.zeros_like(falling), where=width > 0), 0, 1)
    sums = np.cumsum(up)
    sums = np.minimum(np.floor(sums + v), np.ceil(sums))  # v is below 1, but a sum with it may be rounded up
    places: Array = low + np.diff(sums, prepend=0.0).astype(np.int64)
    return places
