"""Losses of embeddings and features: of each vector by itself, and of how those of a batch lie to each other.

Vectors are [N, D]; of relational losses the student's D may be another than the teacher's. All are exact up
to what the codec keeps of the teacher's vectors e. Means over the N targets; reduction="sum" or "none" ([N])
is for callers that weight by themselves, `weights` [N] multiplies each target's loss.

A relational loss of a vector is its mean over the batch's others, so its value depends on which those are:
cutting a batch into accumulated parts, or sharing it among ranks, leaves each part to itself.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from student.losses.formula import Formula, upcast
from student.losses.rows import Reduction, by_rows, reduced
from student.targets import TorchEmbedding


def cosine_distance(
    vectors: Tensor,
    targets: TorchEmbedding,
    *,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """1 − cos(g, e), between 0 and 2, for the student's vectors g [N, D] and the teacher's e.

    Indifferent to the lengths of both. Where either is shorter than 1e-8, nearer to 1 than it is, and 1 for
    zeros. How SEED (Fang et al. 2021) and CompRess (Koohpayegani et al. 2020) compare embeddings.
    """
    return by_rows(vectors, Cosine(targets), reduction, weights)


def feature_mse(
    vectors: Tensor,
    targets: TorchEmbedding,
    *,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """(1/D) Σ_d (g_d − e_d)², the mean over the D features, for vectors g [N, D]. Unit: squared features.

    The hint loss of FitNets (Romero et al. 2015), but for a factor.
    """
    return by_rows(vectors, Squared(targets), reduction, weights)


def smooth_l1(
    vectors: Tensor,
    targets: TorchEmbedding,
    beta: float = 1.0,
    *,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """(1/D) Σ_d h(g_d − e_d), h(x) = x² / 2β where |x| < β, else |x| − β/2, for vectors g [N, D].

    Huber's (1964), as Fast R-CNN (Girshick 2015) has it: outlying features pull with a bounded force.
    """
    return by_rows(vectors, SmoothL1(targets, beta), reduction, weights)


def relational_distance(
    vectors: Tensor,
    targets: TorchEmbedding,
    *,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """(1/N) Σ_j h(ψ_g(n, j) − ψ_e(n, j)) of vector n: ψ(n, j) = |x_n − x_j| over the mean of all pairs' such
    distances, h of `smooth_l1`.

    Relational KD's distance loss (Park et al. 2019). Indifferent to rotation, scale and width of either side.
    """
    g, e = _batch(vectors, targets)
    each = F.smooth_l1_loss(_distances(g), _distances(e), reduction="none").mean(-1)
    return reduced(each if weights is None else each * weights.detach(), reduction)


def relational_angle(
    vectors: Tensor,
    targets: TorchEmbedding,
    *,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """(1/N²) Σ_ij h(cos_g(i, n, j) − cos_e(i, n, j)) of vector n: the cosine of the angle at n, h of
    `smooth_l1`.

    Relational KD's angle loss (Park et al. 2019), which is usually given twice the distance loss' weight.
    Memory grows with N³.
    """
    g, e = _batch(vectors, targets)
    each = F.smooth_l1_loss(_angles(g), _angles(e), reduction="none").mean((-1, -2))
    return reduced(each if weights is None else each * weights.detach(), reduction)


def similarity_preserving(
    vectors: Tensor,
    targets: TorchEmbedding,
    *,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """(1/N) Σ_j (G_nj − E_nj)² of vector n: G and E are X Xᵀ of student and teacher, rows scaled to length 1.

    Similarity-preserving KD (Tung & Mori 2019).
    """
    g, e = (F.normalize(x @ x.T, dim=-1) for x in _batch(vectors, targets))
    each = (g - e).square().mean(-1)
    return reduced(each if weights is None else each * weights.detach(), reduction)


class Cosine(Formula):
    """1 − cos(g, e)."""

    def __init__(self, targets: TorchEmbedding) -> None:
        self._targets = targets

    def losses(self, z: Tensor, start: int, stop: int) -> Tensor:
        return 1 - F.cosine_similarity(z, self._targets.vectors[start:stop].to(z.dtype), dim=-1)


class Squared(Formula):
    """The mean of (g − e)²."""

    def __init__(self, targets: TorchEmbedding) -> None:
        self._targets = targets

    def losses(self, z: Tensor, start: int, stop: int) -> Tensor:
        return (z - self._targets.vectors[start:stop].to(z.dtype)).square().mean(-1)


class SmoothL1(Formula):
    """The mean of h(g − e)."""

    def __init__(self, targets: TorchEmbedding, beta: float) -> None:
        self._targets, self._beta = targets, beta

    def losses(self, z: Tensor, start: int, stop: int) -> Tensor:
        told = self._targets.vectors[start:stop].to(z.dtype)
        return F.smooth_l1_loss(z, told, reduction="none", beta=self._beta).mean(-1)


def _batch(vectors: Tensor, targets: TorchEmbedding) -> tuple[Tensor, Tensor]:
    """Both sides' vectors in one precision of at least float32."""
    g = upcast(vectors)
    return g, targets.vectors.to(g.dtype)


def _distances(x: Tensor) -> Tensor:
    """[N, N], over the mean of those that are not 0."""
    squares = (x[:, None] - x[None]).square().sum(-1)
    distances = torch.where(squares > 0, squares, 1).sqrt() * (squares > 0)
    return distances * (squares > 0).sum() / distances.sum().clamp(min=torch.finfo(x.dtype).tiny)


def _angles(x: Tensor) -> Tensor:
    """[N, N, N], at n the cosine between the directions to i and to j; 0 where there is no direction."""
    directions = F.normalize(x[None] - x[:, None], dim=-1)
    return directions @ directions.mT
