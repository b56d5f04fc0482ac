"""What losses are held to: teachers and targets in float64, and a divergence with the tail as one class."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pipeline.targets.codecs import Threshold
from student.targets import TorchDense, TorchSparse, TorchTopK, TorchTopP, to_torch

N, V, K = 7, 11, 4
"""Targets, classes, and the classes of each target that top-k keeps."""

BETAS = (0.25, 0.5, 1.0)


def logits(seed: int, n: int = N, v: int = V, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, v, dtype=torch.float64, generator=generator) * scale


def dense(z: Tensor) -> TorchDense:
    return TorchDense(z)


def topk(z: Tensor, k: int = K, betas: tuple[float, ...] = BETAS, slopes: bool = False) -> TorchTopK:
    """In float64, unlike a store's, so that gradients can be checked to many digits."""
    log_p = z.log_softmax(-1)
    values, ids = log_p.topk(k)
    rest = log_p.scatter(-1, ids, -math.inf)
    tail = torch.stack([(beta * rest).logsumexp(-1) for beta in betas], dim=-1)
    tilted = torch.stack([(beta * rest).softmax(-1).nan_to_num() for beta in betas], dim=-1)
    slope = (tilted * torch.where(rest > -math.inf, rest, 0)[..., None]).sum(-2) if slopes else None
    return TorchTopK(ids, values, betas, tail, z.shape[-1], slope)


def topp(z: Tensor, counts: list[int], betas: tuple[float, ...] = BETAS) -> TorchTopP:
    """The likeliest `counts[n]` classes of target n, in float64."""
    parts = [topk(row[None], k, betas) for row, k in zip(z, counts, strict=True)]
    return TorchTopP(
        torch.cat([part.ids[0] for part in parts]),
        torch.cat([part.log_probs[0] for part in parts]),
        np.concatenate([[0], np.cumsum(counts)]),
        betas,
        torch.cat([part.tail_log_mass for part in parts]),
        z.shape[-1],
    )


def sparse(z: Tensor, threshold: float = 0.05, seed: int = 0) -> TorchSparse:
    """In float64, with sums of 1 to its precision."""
    codec = Threshold(threshold=threshold)
    draws = np.random.default_rng(seed).random((len(z), codec.draws))
    targets = codec.decode(codec.encode(z.numpy(), draws), z.shape[-1])
    decoded = to_torch(targets)
    assert isinstance(decoded, TorchSparse)
    weights = decoded.weights.double()
    sums = torch.zeros(len(decoded), dtype=torch.float64).index_add(0, decoded.rows, weights)
    return replace(decoded, weights=weights / sums[decoded.rows])


def densified(targets: TorchSparse) -> Tensor:
    p = torch.zeros(len(targets), targets.size, dtype=torch.float64)
    return p.index_put((targets.rows, targets.ids), targets.weights.double(), accumulate=True)


TEACHER = logits(0)
LABELS = torch.randint(0, V, (N,), generator=torch.Generator().manual_seed(5))
SPARSE = sparse(TEACHER)
COUNTS = [1, 4, 2, V, 3, 1, 6]
"""Classes of each target that top-p keeps: all of one."""


def bucketed(
    z: Tensor, t: float, counts: list[int], divergence: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """The divergence of the likeliest `counts[n]` classes of target n, and the others as one: [N]."""
    p, q = (TEACHER / t).softmax(-1), (z / t).softmax(-1)
    losses = []
    for n, k in enumerate(counts):
        order = TEACHER[n].argsort(descending=True)
        head, tail = order[:k], order[k:]
        parts = [torch.cat([x[n, head], x[n, tail].sum()[None]]) if len(tail) else x[n, head] for x in (p, q)]
        losses.append(divergence(*parts))
    return torch.stack(losses)


def reference_bucketed(z: Tensor, t: float, counts: list[int]) -> Tensor:
    """T² KL of the likeliest `counts[n]` classes of target n, and the others as one."""
    return t * t * bucketed(z, t, counts, lambda p, q: (p * (p / q).log()).sum(-1))
