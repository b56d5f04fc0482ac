"""Threshold: the likely classes with their probability, and an unbiased sample of all the others.

Knows how one distribution becomes a handful of entries and back; knows nothing of rows, files or models.

Let p be the softmax of a target's logits and lambda the codec's `threshold`.

* The *head* is every class with p_i >= lambda; it is kept. The *tail* is the rest, of mass R.
* The tail is sampled in n = ceil(R/lambda) *systematic* draws: with one uniform u, the points (u + j) R/n,
  j = 0 .. n - 1, are laid on the running mass of the tail in id order, and each falls on one class. A draw
  is an id alone, worth the n-th part of the tail. As R/n may be a little less than a tail class's p_i, a
  class can be drawn twice; its id is then stored twice.
* The values live on a grid of M = 65535 parts. [head in id order, tail] is rounded *together*: with a
  second uniform v and the running sums S_i of M p, part i gets c_i = floor(S_i + v) - floor(S_(i-1) + v).
  The last S is M exactly, so sum c = M: decoded weights are non-negative and sum to exactly one. If the
  tail gets no part of the grid there is nothing to share out, and no draw is stored.

Decoded: p_hat_i = c_i/M in the head, and (number of draws that hit i)/n * c_tail/M in the tail.

Unbiased: S_i + v is uniform on an interval of length one, so E floor(S_i + v) = S_i and E c_i = M p_i, for
head classes and for the tail as a whole. A tail class owns p_i n/R of the n equal steps that the points
stand in, so it is hit p_i n/R times on average. Hits depend on u alone and c_tail on v alone, and u and v
are independent: E p_hat_i = (p_i n/R) (1/n) E[c_tail/M] = p_i. Dropping the draws when c_tail = 0 drops
weights of zero.

Least variance: of all unbiased estimates with a given expected number of entries, the one with the least
squared error, and the least KL, keeps the heavy coordinates as they are and gives all sampled ones one
common value (Barnes et al., "Efficient Unbiased Sparsification", arXiv 2402.14925). A threshold on the mass
is also the form of VarOpt (Cohen et al., SODA 2009) and priority sampling (Duffield et al., JACM 2007);
systematic draws (Madow, 1949) reach it with a fixed n, since the hits of one class never differ by more
than one. This codec is that optimum, but that n is rounded up to an integer so that the sum is exact. One
lambda for all targets is what the least total variance at a given total number of entries asks for. The
grid adds a standard deviation of at most 1/(2 M), 8e-6, to a head class and to the tail's mass.

Entries: a target of h head classes stores h + ceil(R/lambda) of them, at most 1/lambda + 1; when R < 1/M it
stores h alone with probability 1 - M R, so a target that is certain to five digits costs one entry.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from pipeline.targets.codecs import base
from pipeline.targets.codecs.base import (
    Array,
    Codec,
    Encoded,
    Field,
    NonFiniteLogits,
    id_dtype,
    offsets_of,
    ranges,
)
from pipeline.targets.decoded import SparseTargets

if TYPE_CHECKING:
    import torch

GRID = 65535
"""Parts that a target's probability is cut into: M of the module's docstring."""

BLOCK = 32
"""Classes that the torch implementation sums up first, and looks into only if the sum calls for it."""


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

    def layout(self, size: int) -> tuple[Field, ...]:
        """Counts are one byte each if 1 / threshold <= 255. head_ids ascend, head_values are their c_i;
        tail_ids ascend, with repetitions.
        """
        count = "|u1" if math.ceil(1 / self.threshold) <= 255 else "<u2"
        ids = id_dtype(size)
        return (
            Field("head_count", count),
            Field("tail_count", count),
            Field("head_ids", ids, counted_by="head_count"),
            Field("head_values", "<u2", counted_by="head_count"),
            Field("tail_ids", ids, counted_by="tail_count"),
        )

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
        head = np.flatnonzero(is_head)
        running = np.cumsum(np.where(is_head, 0.0, mass))
        sums = np.cumsum(mass[head])
        tail = running[-1]
        # Summed in the same order as `sums`, so that without a tail the last sum is M to the last bit.
        total = tail + (sums[-1] if len(head) else 0.0)
        # S + v may round up to M + 1 when both are as large as they get.
        parts = np.minimum(np.floor(GRID * (sums / total) + v), GRID)
        kept = parts[-1] if len(head) else 0
        draws = math.ceil(tail / total / self.threshold) if kept < GRID else 0
        points = (u + np.arange(draws)) / max(draws, 1) * tail
        # The last point may round up to the whole tail; it belongs to the last class that has any mass.
        drawn = np.searchsorted(running, np.minimum(points, np.nextafter(tail, 0.0)), side="right")
        columns = (len(head), draws, head, np.diff(parts, prepend=0.0), drawn)
        return {
            stored.name: np.atleast_1d(column).astype(stored.dtype)
            for stored, column in zip(self.layout(size), columns, strict=True)
        }

    def encode_torch(self, logits: torch.Tensor, uniforms: Array) -> Encoded:
        """The same on the tensor's device, in one pass over the logits.

        Probabilities are float32 (float64 for float64 logits), their running sums float64. The result is that
        of `encode` unless rounding decides: a probability within 1e-6 (relative) of the threshold, or a point
        within 1e-6 of the border between two classes, whose neighbour it then takes; or M times a head's
        running sum within 0.01 of a grid line, and a value differs by 1/M. Probabilities below 1e-38 count as
        zero. A target's result does not depend on the others in the call.
        """
        import torch

        logits = logits.detach()
        count, size = logits.shape
        blocks = -(-size // BLOCK)
        # Scratch that a CPU keeps in its cache: a fresh [N, V] buffer would cost more than all the
        # arithmetic. Smaller chunks make more calls, and each waits for all threads.
        rows = max(1, (2**21 if logits.device.type == "cpu" else 2**25) // (blocks * BLOCK))
        dtype = torch.promote_types(logits.dtype, torch.float32)
        whole = size == blocks * BLOCK and logits.dtype == dtype and logits.is_contiguous()
        padded = logits.new_full((0 if whole else min(rows, count), blocks * BLOCK), -torch.inf, dtype=dtype)
        uv = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)
        parts: list[Encoded] = []
        bad = np.zeros(count, dtype=np.bool_)
        for start in range(0, count, rows):
            chunk = logits[start : start + rows]
            if not whole:
                padded[: len(chunk), :size] = chunk
                chunk = padded[: len(chunk)]
            p = torch.softmax(chunk, dim=1).view(-1, blocks, BLOCK)
            mass = p.sum(dim=2).double()
            # NaN, +inf and nothing but -inf all leave NaN behind.
            bad[start : start + rows] = mass.sum(dim=1).isnan().cpu().numpy()
            if not bad.any():
                parts.append(self._encode_blocks(p, mass, uv[start : start + rows], size))
        if bad.any():
            raise NonFiniteLogits(bad)
        return base.concatenate(parts, self.layout(size))

    def _encode_blocks(self, p: torch.Tensor, mass: torch.Tensor, uv: torch.Tensor, size: int) -> Encoded:
        """Some targets. p: [n, blocks, BLOCK]; mass: float64 [n, blocks], its sums; uv: [n, 2]. p and mass
        are used up.
        """
        import torch

        count, blocks, _ = p.shape
        flat, u, v = p.view(-1, BLOCK), uv[:, :1], uv[:, 1:]
        least = self.threshold * mass.sum(dim=1)

        # Head. A block that holds a head class weighs at least as much; the slack is for rounding in its sum.
        heavy = (mass >= least[:, None] * (1 - 1e-5)).flatten().nonzero().squeeze(1)
        inside = flat.index_select(0, heavy).double()
        is_head = inside >= least[heavy // blocks, None]
        at, lane = is_head.nonzero(as_tuple=True)
        row, head = heavy[at] // blocks, heavy[at] % blocks * BLOCK + lane
        head_count = torch.bincount(row, minlength=count)
        rank = torch.arange(len(row), device=p.device) - (head_count.cumsum(0) - head_count)[row]
        sums = mass.new_zeros(count, max(1, int(head_count.max())))
        sums[row, rank] = inside[at, lane]
        sums = sums.cumsum(dim=1)

        # Tail: the same sums without the head.
        flat[heavy[at], lane] = 0.0
        mass.view(-1)[heavy] = inside.masked_fill_(is_head, 0.0).sum(dim=1)
        running = mass.cumsum(dim=1)
        tail = running[:, -1:]
        total = sums[:, -1:] + tail
        grid = (GRID * (sums / total) + v).floor().clamp(max=GRID)
        values = grid.diff(dim=1, prepend=grid.new_zeros(count, 1))[row, rank]
        draws = (tail / total / self.threshold).ceil() * (grid[:, -1:] < GRID)

        # Draws: first the block that a point falls into, then the class in it.
        step = torch.arange(int(draws.max()), device=p.device)
        points = (u + step) / draws.clamp(min=1) * tail
        points = torch.minimum(points, torch.nextafter(tail, torch.zeros_like(tail)))
        wanted = step < draws
        row = wanted.nonzero()[:, 0]
        block = torch.searchsorted(running, points, right=True)[wanted]
        hit = row * blocks + block
        inner = flat.index_select(0, hit).double().cumsum(dim=1)
        point = points[wanted] - (running.view(-1)[hit] - mass.view(-1)[hit])
        # A block's float32 sum and `inner` differ by rounding; the point stays inside all the same.
        point = torch.minimum(point.clamp(min=0), torch.nextafter(inner[:, -1], torch.zeros_like(point)))
        drawn = block * BLOCK + torch.searchsorted(inner, point[:, None], right=True).squeeze(1)
        # An accelerator's parallel running sums may rise by a rounding error where there is no mass.
        drawn.clamp_(max=size - 1)

        columns = (head_count, draws[:, 0], head, values, drawn)
        return {
            stored.name: column.cpu().numpy().astype(stored.dtype)
            for stored, column in zip(self.layout(size), columns, strict=True)
        }

    def decode(self, encoded: Encoded, size: int) -> SparseTargets:
        """See `SparseTargets`."""
        heads = encoded["head_count"].astype(np.int64)
        tails = encoded["tail_count"].astype(np.int64)
        offsets = offsets_of(heads + tails)
        in_head = ranges(offsets[:-1], heads)
        in_tail = ranges(offsets[:-1] + heads, tails)
        values = encoded["head_values"].astype(np.int64)
        kept = np.diff(offsets_of(values)[offsets_of(heads)])
        ids = np.empty(offsets[-1], dtype=np.int64)
        weights = np.empty(offsets[-1], dtype=np.float32)
        ids[in_head] = encoded["head_ids"]
        ids[in_tail] = encoded["tail_ids"]
        weights[in_head] = values / GRID
        weights[in_tail] = np.repeat((GRID - kept) / (GRID * np.maximum(tails, 1)), tails)
        return SparseTargets(ids, weights, offsets, heads, size)

    def statistics(self, encoded: Encoded, size: int) -> dict[str, float]:
        """entries: stored ids; captured_mass: the head's probability; payload_bytes per target."""
        n = len(encoded["head_count"])
        if n == 0:
            return {"entries": 0.0, "captured_mass": 0.0, "payload_bytes": 0.0}
        return {
            "entries": (len(encoded["head_ids"]) + len(encoded["tail_ids"])) / n,
            "captured_mass": float(encoded["head_values"].sum(dtype=np.int64)) / GRID / n,
            "payload_bytes": sum(array.nbytes for array in encoded.values()) / n,
        }
