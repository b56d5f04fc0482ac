"""Threshold's encoder on tensors, wherever they are: the same as in NumPy, in one pass over the logits.

It knows the arithmetic; what the numbers mean, and how close the two agree, `threshold` says.
"""

from __future__ import annotations

import numpy as np
import torch

from pipeline.targets.codecs.base import Array, NonFiniteLogits

BLOCK = 32
"""Classes that are summed up first, and looked into only if the sum calls for it."""

CPU_ELEMENTS, ACCELERATOR_ELEMENTS = 2**21, 2**25
"""Logits worked on at a time: scratch that a CPU keeps in its cache (a fresh [N, V] buffer would cost more
than all the arithmetic, and smaller chunks make more calls, each of which waits for all threads)."""


def encode(
    logits: torch.Tensor,
    uniforms: Array,
    threshold: float,
    parts: int,
    headless_draws: int,
    grid: Array,
) -> tuple[Array, Array, Array, Array]:
    """Counts of entries and of head classes, int64 [N]; ids and values of all targets, int64.

    logits: [N, V]; uniforms: u and v of each target, float64 [N, 2]; parts: of the threshold that the tail is
    counted in; headless_draws: of a target without a head class; grid: a head class's values, rising.
    Raises NonFiniteLogits.
    """
    logits = logits.detach()
    count, size = logits.shape
    blocks = -(-size // BLOCK)
    elements = CPU_ELEMENTS if logits.device.type == "cpu" else ACCELERATOR_ELEMENTS
    rows = max(1, elements // (blocks * BLOCK))
    dtype = torch.promote_types(logits.dtype, torch.float32)
    whole = size == blocks * BLOCK and logits.dtype == dtype and logits.is_contiguous()
    padded = logits.new_full((0 if whole else min(rows, count), blocks * BLOCK), -torch.inf, dtype=dtype)
    uv = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)
    values = torch.from_numpy(grid).to(logits.device)
    found: list[tuple[Array, ...]] = []
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
            some = _encode(p, mass, uv[start : start + rows], size, threshold, parts, headless_draws, values)
            found.append(tuple(column.cpu().numpy() for column in some))
    if bad.any():
        raise NonFiniteLogits(bad)
    entries, heads, ids, stored = (
        np.concatenate([part[place] for part in found]) if found else np.zeros(0, dtype=np.int64)
        for place in range(4)
    )
    return entries, heads, ids, stored


def _encode(
    p: torch.Tensor,
    mass: torch.Tensor,
    uv: torch.Tensor,
    size: int,
    threshold: float,
    parts: int,
    headless_draws: int,
    grid: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """Some targets. p: [n, blocks, BLOCK]; mass: float64 [n, blocks], its sums. Both are used up."""
    count, blocks, _ = p.shape
    flat, u, v = p.view(-1, BLOCK), uv[:, :1], uv[:, 1:]
    least = threshold * mass.sum(dim=1)

    # Head. A block that holds a head class weighs at least as much; the slack is for rounding in its sum.
    heavy = (mass >= least[:, None] * (1 - 1e-5)).flatten().nonzero().squeeze(1)
    inside = flat.index_select(0, heavy).double()
    is_head = inside >= least[heavy // blocks, None]
    at, lane = is_head.nonzero(as_tuple=True)
    row, ids = heavy[at] // blocks, heavy[at] % blocks * BLOCK + lane
    head_count = torch.bincount(row, minlength=count)
    first = head_count.cumsum(0) - head_count
    rank = torch.arange(len(row), device=p.device) - first[row]
    head = mass.new_zeros(count, max(1, int(head_count.max())))
    head[row, rank] = inside[at, lane]

    # Tail: the same sums without the head.
    flat[heavy[at], lane] = 0.0
    mass.view(-1)[heavy] = inside.masked_fill_(is_head, 0.0).sum(dim=1)
    running = mass.cumsum(dim=1)
    tail = running[:, -1:]
    total = head.sum(dim=1, keepdim=True) + tail
    has_head = head_count[:, None] > 0
    stored = (parts * (tail / total / threshold) + v).floor()
    draws = torch.where(has_head, (stored / parts).ceil(), float(headless_draws))

    # Values: of the likeliest the tail's, behind it the others' by ascending id.
    falling, order = (head / total).sort(dim=1, descending=True, stable=True)
    placed = torch.zeros_like(head, dtype=torch.int64).scatter_(
        1, order[:, 1:], _round(falling[:, 1:].contiguous(), v, grid)
    )
    likeliest = order[:, :1]
    byte = torch.where(draws > 0, stored - parts * (draws - 1) - 1, 0.0).long()
    placed.scatter_(1, likeliest, byte)
    chosen = likeliest[row, 0]
    behind = torch.where(rank == chosen, 0, rank + (rank < chosen))
    values = torch.empty_like(ids).scatter_(0, first[row] + behind, placed[row, rank])
    entries = head_count + draws[:, 0].long()
    begin = entries.cumsum(0) - entries
    together = ids.new_empty(int(entries.sum()))
    together[begin[row] + behind] = ids

    # Draws: first the block that a point falls into, then the class in it.
    step = torch.arange(int(draws.max()), device=p.device)
    points = (u + step) / draws.clamp(min=1) * tail
    points = torch.minimum(points, torch.nextafter(tail, torch.zeros_like(tail)))
    wanted = step < draws
    row, number = wanted.nonzero(as_tuple=True)
    block = torch.searchsorted(running, points, right=True)[wanted]
    hit = row * blocks + block
    inner = flat.index_select(0, hit).double().cumsum(dim=1)
    point = points[wanted] - (running.view(-1)[hit] - mass.view(-1)[hit])
    # A block's float32 sum and `inner` differ by rounding; the point stays inside all the same.
    point = torch.minimum(point.clamp(min=0), torch.nextafter(inner[:, -1], torch.zeros_like(point)))
    drawn = block * BLOCK + torch.searchsorted(inner, point[:, None], right=True).squeeze(1)
    # An accelerator's parallel running sums may rise by a rounding error where there is no mass.
    drawn.clamp_(max=size - 1)
    together[(begin + head_count)[row] + number] = drawn
    return entries, head_count, together, values


def _round(falling: torch.Tensor, v: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Places in the grid of rows of probabilities, [n, k], padded with zeros behind their own; v: [n, 1]."""
    low = (torch.searchsorted(grid, falling, right=True) - 1).clamp(0, len(grid) - 2)
    width = grid[low + 1] - grid[low]
    up = torch.where((falling > 0) & (width > 0), (falling - grid[low]) / width, 0.0).clamp(0, 1)
    sums = up.cumsum(dim=1)
    sums = torch.minimum((sums + v).floor(), sums.ceil())  # v is below 1, but a sum with it may be rounded
    return low + sums.diff(dim=1, prepend=torch.zeros_like(v)).long()
