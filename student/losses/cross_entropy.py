"""Cross-entropies: linear in what they are told, so labels and a sparse estimate are one pass.

All values are means over the N targets, in nats; reduction="sum" or "none" ([N]) is for callers that weight
by themselves, `weights` [N] multiplies each target's loss.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from student.losses.formula import Formula
from student.losses.rows import Logits, Reduction, by_rows
from student.targets import TorchDense, TorchSparse


def hard_cross_entropy(
    logits: Logits,
    labels: Tensor,
    *,
    smoothing: float = 0.0,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """−(1 − ε) ln q[label] − (ε / V) Σ_v ln q_v for labels int64 [N] in 0..V−1 and logits [N, V].

    ε: label smoothing (Szegedy et al. 2016).
    """
    return by_rows(logits, CrossEntropy(labels=labels, smoothing=smoothing), reduction, weights)


def sparse_cross_entropy(
    logits: Logits,
    targets: TorchSparse,
    *,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """lse(z) − Σ_e w_e z[id_e]: the cross-entropy H(p̂, q) with the sparse estimate p̂, for logits z [N, V].

    Cross-entropy is linear in p, E[p̂] = p and Σ p̂ = 1, so value and gradient (q − p̂; the coefficient of
    the log-sum-exp is exactly 1) are unbiased for those of H(p, q), and so of the forward KL, at
    temperature 1. Its minimum over q is H(p̂), not 0. A class may occur several times; weights add up.
    Sparse Logit Sampling (ACL 2025) with the sampling of Barnes et al. (2402.14925).
    Raises ValueError if V is not the targets'.
    """
    return by_rows(logits, CrossEntropy(targets), reduction, weights)


def tempered_cross_entropy(
    logits: Logits,
    targets: TorchDense,
    temperature: float = 1.0,
    *,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """T² H(p_T, q_T) = `tempered_kl` + T² H(p_T), with p_T = softmax(z / T) of the teacher and q_T of the
    student's logits [N, V].

    Hinton, Vinyals & Dean 2015. Exact for dense targets.
    """
    return by_rows(logits, _Tempered(targets, temperature), reduction, weights)


class CrossEntropy(Formula):
    """(1 − h) H(p̂, q) + h H(y, q), y being the label smoothed by ε: lse(z) − Σ_v t_v z_v for the mixed t.

    Σ t = 1, so one log-sum-exp serves both, and the gradient q − t is written over the logits.
    """

    def __init__(
        self,
        targets: TorchSparse | None = None,
        labels: Tensor | None = None,
        hard_weight: float = 1.0,
        smoothing: float = 0.0,
    ) -> None:
        """h is 0 without labels, 1 without targets."""
        self._targets, self._labels = targets, labels
        self._hard = 0.0 if labels is None else 1.0 if targets is None else hard_weight
        self._smoothing = smoothing

    def losses(self, z: Tensor, start: int, stop: int) -> Tensor:
        return self._from(z, z.logsumexp(-1), start, stop)

    def derive(self, z: Tensor, start: int, stop: int, upstream: Tensor) -> tuple[Tensor, Tensor]:
        top, linear = z.amax(-1), self._from(z, torch.zeros_like(upstream), start, stop)
        gradient = torch.softmax(z, -1, out=z)
        losses = linear + top - gradient.amax(-1).log()
        gradient.mul_(upstream[:, None])
        self._subtract(gradient, upstream, start, stop)
        return losses, gradient

    def _from(self, z: Tensor, lse: Tensor, start: int, stop: int) -> Tensor:
        """lse − Σ t z."""
        losses = lse
        if self._targets is not None and self._hard < 1:
            part, at, weights = self._entries(z, start, stop)
            picked = weights * z.flatten().index_select(0, at)
            losses = losses.index_add(0, part.rows, picked, alpha=self._hard - 1)
        if self._labels is not None and self._hard > 0:
            picked = z.gather(-1, self._labels[start:stop, None]).squeeze(-1)
            if self._smoothing:
                picked = torch.lerp(picked, z.mean(-1), self._smoothing)
            losses = losses - self._hard * picked
        return losses

    def _subtract(self, gradient: Tensor, upstream: Tensor, start: int, stop: int) -> None:
        """gradient −= upstream · t."""
        if self._targets is not None and self._hard < 1:
            part, at, weights = self._entries(gradient, start, stop)
            weights = weights * upstream.index_select(0, part.rows)
            gradient.view(-1).index_add_(0, at, weights, alpha=self._hard - 1)
        if self._labels is not None and self._hard > 0:
            share = self._hard * upstream[:, None]
            gradient.scatter_add_(-1, self._labels[start:stop, None], (self._smoothing - 1) * share)
            if self._smoothing:
                gradient.sub_(share * (self._smoothing / gradient.shape[-1]))

    def _entries(self, z: Tensor, start: int, stop: int) -> tuple[TorchSparse, Tensor, Tensor]:
        """The targets of the rows, their entries' places in the flattened z, and weights."""
        assert self._targets is not None
        if self._targets.size != z.shape[-1]:
            raise ValueError(f"targets of {self._targets.size} classes, logits of {z.shape[-1]}")
        part = self._targets.slice(start, stop)
        return part, part.rows * z.shape[-1] + part.ids, part.weights.to(z.dtype)


class _Tempered(Formula):
    """T² H(p_T, q_T)."""

    def __init__(self, targets: TorchDense, temperature: float) -> None:
        self._targets, self._t = targets, temperature

    def losses(self, z: Tensor, start: int, stop: int) -> Tensor:
        t = self._t
        p = F.softmax(self._targets.logits[start:stop].to(z.dtype) / t, dim=-1)
        return -t * t * torch.where(p > 0, p * F.log_softmax(z / t, dim=-1), 0).sum(-1)
