"""Divergences between what the teacher says and what the student says, at any temperature the targets know.

Each is one formula of two distributions, ln p and ln q. Of dense targets these are over all V classes. Of
sparse ones (topk, topp, and threshold's head) they are over buckets: each stored class, and everything else
as one, whose mass for the student is what all of its other logits have. All are f-divergences (or mixtures
of such), so on buckets each is exact for the bucketed distributions, hence a lower bound of itself on all
classes (data processing), equal where teacher and student agree on the shape of the tail. Nothing is
renormalised over the stored classes, so the student's tail mass is learned.

All values are means over the N targets, in nats but for the total variation; reduction="sum" or "none" ([N])
is for callers that weight by themselves, `weights` [N] multiplies each target's loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from student.losses.formula import Formula
from student.losses.rows import Logits, Reduction, by_rows
from student.targets import TorchDense, TorchSparse, TorchTopK, TorchTopP

Bucketed = TorchTopK | TorchTopP | TorchSparse
Distributions = TorchDense | Bucketed
"""Targets of a head of logits."""

Divergence = Callable[[Tensor, Tensor], Tensor]
"""(ln p, ln q) of classes or buckets, both finite -> what each adds to the divergence."""

NOTHING = -1e4
"""The logarithm of a probability that is zero in every precision, and finite."""

LEAST_TAIL = 1e-30
"""What a student's tail mass is raised to, so that float32 can divide by it."""

LEAST_LOG_P = -100.0
"""What ln p is raised to where it is divided by: as torch does in its binary cross-entropy."""


def tempered_kl(
    logits: Logits,
    targets: TorchDense,
    temperature: float = 1.0,
    *,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """T² KL(p_T ‖ q_T), with p_T = softmax(z / T) of the teacher and q_T of the student's logits [N, V].

    Hinton, Vinyals & Dean 2015; T² keeps the gradient's size comparable to a hard label's. Exact for dense
    targets; its gradient is that of `tempered_cross_entropy`.
    """
    return by_rows(logits, divergence(kl, targets, temperature), reduction, weights)


def topk_kl(
    logits: Logits,
    targets: TorchTopK | TorchTopP,
    temperature: float = 1.0,
    *,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """T² Σ_b P_b ln(P_b / Q_b) over the buckets of a target: each stored class, and everything else as one.

    P at temperature T from the stored log-probabilities and the tail's mass at beta = 1/T, as it was measured
    or, where slopes are stored, interpolated (`tail_log_mass_at`, with `tail_error_at` as a bound); Q from
    all of the student's logits [N, V]. Exact for the KL between the bucketed distributions.
    Raises ValueError when the tail's mass is not known at 1/T.
    """
    return by_rows(logits, divergence(kl, targets, temperature), reduction, weights)


def reverse_kl(
    logits: Logits,
    targets: Distributions,
    temperature: float = 1.0,
    *,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """T² KL(q_T ‖ p_T): the student seeks a mode of the teacher instead of covering all (MiniLLM, Gu et al.
    2024). ln p is raised to −100, so that what the teacher excludes costs the student much, not everything.

    Exact for dense targets; for others of the bucketed distributions. Raises ValueError as `divergence`.
    """
    return by_rows(logits, divergence(reversed_kl, targets, temperature), reduction, weights)


def jensen_shannon(
    logits: Logits,
    targets: Distributions,
    temperature: float = 1.0,
    beta: float = 0.5,
    *,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """T² [β KL(p_T ‖ m) + (1 − β) KL(q_T ‖ m)] with m = β p_T + (1 − β) q_T and 0 < β < 1.

    The generalised Jensen–Shannon divergence of GKD (Agarwal et al. 2024); β = ½ is Jensen and Shannon's own,
    at most ln 2. Divided by β it tends to the forward KL as β → 0, by 1 − β to the reverse as β → 1.
    Exact for dense targets; for others of the bucketed distributions. Raises ValueError as `divergence`.
    """
    return by_rows(logits, divergence(generalised_jsd(beta), targets, temperature), reduction, weights)


def skew_kl(
    logits: Logits,
    targets: Distributions,
    temperature: float = 1.0,
    skew: float = 0.1,
    *,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """T² KL(p_T ‖ α p_T + (1 − α) q_T), α = skew: DistiLLM's (Ko et al. 2024), at most −ln α.

    Exact for dense targets; for others of the bucketed distributions. Raises ValueError as `divergence`.
    """
    return by_rows(logits, divergence(skewed(skew), targets, temperature), reduction, weights)


def skew_reverse_kl(
    logits: Logits,
    targets: Distributions,
    temperature: float = 1.0,
    skew: float = 0.1,
    *,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """T² KL(q_T ‖ (1 − α) p_T + α q_T), α = skew: DistiLLM's (Ko et al. 2024), finite whatever p excludes.

    Exact for dense targets; for others of the bucketed distributions. Raises ValueError as `divergence`.
    """
    return by_rows(logits, divergence(skewed_reverse(skew), targets, temperature), reduction, weights)


def total_variation(
    logits: Logits,
    targets: Distributions,
    temperature: float = 1.0,
    *,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """T ½ Σ_v |p_T − q_T|, at T = 1 between 0 and 1 (f-distill, Wen et al. 2023).

    With T and not T²: it is not quadratic where p and q agree, so its gradient falls as 1/T alone. That is 0
    where they do. Exact for dense targets; for others of the bucketed distributions. Raises ValueError as
    `divergence`.
    """
    formula = divergence(variation, targets, temperature, temperature)
    return by_rows(logits, formula, reduction, weights)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p ‖ q)."""
    return log_p.exp() * (log_p - log_q)


def reversed_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(q ‖ p), with ln p raised to LEAST_LOG_P."""
    return kl(log_q, log_p.clamp(min=LEAST_LOG_P))


def generalised_jsd(beta: float) -> Divergence:
    """β KL(p ‖ m) + (1 − β) KL(q ‖ m), m = β p + (1 − β) q."""

    def terms(log_p: Tensor, log_q: Tensor) -> Tensor:
        log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
        return beta * kl(log_p, log_m) + (1 - beta) * kl(log_q, log_m)

    return terms


def skewed(skew: float) -> Divergence:
    """KL(p ‖ α p + (1 − α) q)."""

    def terms(log_p: Tensor, log_q: Tensor) -> Tensor:
        return kl(log_p, torch.logaddexp(log_p + math.log(skew), log_q + math.log1p(-skew)))

    return terms


def skewed_reverse(skew: float) -> Divergence:
    """KL(q ‖ (1 − α) p + α q)."""

    def terms(log_p: Tensor, log_q: Tensor) -> Tensor:
        return skewed(skew)(log_q, log_p)

    return terms


def variation(log_p: Tensor, log_q: Tensor) -> Tensor:
    """½ Σ |p − q|."""
    return 0.5 * (log_p.exp() - log_q.exp()).abs()


def divergence(
    terms: Divergence, targets: Distributions, temperature: float, scale: float | None = None
) -> Formula:
    """scale · Σ terms(ln p_T, ln q_T); scale is T² by default.

    Raises ValueError when the targets' tail is not known at 1/T: that of threshold targets is at 1 alone, and
    of sampled ones, which keep no class with its own probability, nowhere.
    """
    scale = temperature**2 if scale is None else scale
    if isinstance(targets, TorchDense):
        return _OfClasses(terms, targets, temperature, scale)
    if isinstance(targets, TorchSparse):
        targets = targets.head()
    targets.require(1 / temperature)
    return _OfBuckets(terms, targets, temperature, scale)


class _OfClasses(Formula):
    """A divergence over all V classes."""

    def __init__(self, terms: Divergence, targets: TorchDense, temperature: float, scale: float) -> None:
        self._terms, self._targets, self._t, self._scale = terms, targets, temperature, scale

    def losses(self, z: Tensor, start: int, stop: int) -> Tensor:
        log_p = F.log_softmax(self._targets.logits[start:stop].to(z.dtype) / self._t, dim=-1)
        log_q = F.log_softmax(z / self._t, dim=-1)
        return self._scale * self._terms(log_p.clamp(min=NOTHING), log_q.clamp(min=NOTHING)).sum(-1)


class _OfBuckets(Formula):
    """A divergence over the stored classes and everything else as one."""

    def __init__(
        self, terms: Divergence, targets: TorchTopK | TorchTopP, temperature: float, scale: float
    ) -> None:
        self._terms, self._targets, self._t, self._scale = terms, targets, temperature, scale

    def losses(self, z: Tensor, start: int, stop: int) -> Tensor:
        return self._work_out(z.clone(), start, stop, None)[0]

    def derive(self, z: Tensor, start: int, stop: int, upstream: Tensor) -> tuple[Tensor, Tensor]:
        return self._work_out(z, start, stop, upstream)

    def _work_out(self, z: Tensor, start: int, stop: int, upstream: Tensor | None) -> tuple[Tensor, Tensor]:
        """Losses; and, where upstream is given, the gradient in the memory of z.

        With g the gradient in ln Q it is, in z, of a stored class b g_b − Q_b Σ g, of any other
        q (g_tail / Q_tail − Σ g), both over T.
        """
        if self._targets.size != z.shape[-1]:
            raise ValueError(f"targets of {self._targets.size} classes, logits of {z.shape[-1]}")
        rows, ids, head_p, tail_p = self._told(start, stop, z.dtype)
        at = rows * z.shape[-1] + ids
        picked, top = z.flatten().index_select(0, at), z.amax(-1)
        q = torch.softmax(z if self._t == 1 else z.div_(self._t), -1, out=z)
        lse = top / self._t - q.amax(-1).log()
        head_q = (picked / self._t - lse.index_select(0, rows)).clamp(min=NOTHING)
        tail = q.view(-1).index_fill_(0, at, 0).view_as(q).sum(-1).clamp(min=LEAST_TAIL)
        tail_q = tail.log()
        with torch.set_grad_enabled(upstream is not None):
            both = [each.requires_grad_(upstream is not None) for each in (head_q, tail_q)]
            losses = self._scale * self._terms(tail_p, tail_q)
            losses = losses.index_add(0, rows, self._scale * self._terms(head_p, head_q))
        if upstream is None:
            return losses, q
        of_head, of_tail = (g / self._t for g in torch.autograd.grad(losses, both, upstream))
        total = of_tail.index_add(0, rows, of_head)
        q.mul_((of_tail / tail - total)[:, None])
        own = of_head - head_q.detach().exp() * total.index_select(0, rows)
        q.view(-1).index_copy_(0, at, own)
        return losses.detach(), q

    def _told(self, start: int, stop: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of the stored classes of the targets: row, id, ln P, [E] each; and ln P of everything else, [C]."""
        part = self._targets.slice(start, stop)
        rest = part.tail_log_mass_at(1 / self._t).to(dtype)
        if isinstance(part, TorchTopP):
            rows = part.rows
        else:
            rows = torch.arange(len(part), device=rest.device).repeat_interleave(part.ids.shape[1])
        head = (part.log_probs.flatten() / self._t).to(dtype)
        top = rest.scatter_reduce(0, rows, head, "amax")
        mass = (rest - top).exp().index_add(0, rows, (head - top.index_select(0, rows)).exp())
        norm = top + mass.log()
        head = (head - norm.index_select(0, rows)).clamp(min=NOTHING)
        return rows, part.ids.flatten(), head, (rest - norm).clamp(min=NOTHING)
