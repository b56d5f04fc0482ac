"""What a student minimises: functions of its outputs and the stored targets. Knows nothing of models.

Outputs are logits [N, V], or vectors [N, D] where the targets are embeddings.

Every loss is written once, as a plain formula on a few rows in float32. `_by_rows` applies it to all N in
parts and differentiates it the same way, so that beside the logits and their gradient (both in the logits'
own dtype) there is never more than a part in float32, whatever N and V. Second derivatives are not
available.

All values are means over the N targets, in nats unless said otherwise; reduction="sum" or "none" ([N]) is
for callers that weight by themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.targets.errors import ConfigError
from student.config import LossConfig
from student.targets import TorchDense, TorchEmbedding, TorchSparse, TorchTargets, TorchTopK, TorchTopP

Reduction = Literal["mean", "sum", "none"]
Formula = Callable[[Tensor, int, int], Tensor]
"""(logits [C, V] of rows start..stop, start, stop) -> losses [C]."""

PART_ELEMENTS = 1 << 22
"""Logits per part: 16 MiB in float32."""


def logit_l2(logits: Tensor, targets: TorchDense, *, reduction: Reduction = "mean") -> Tensor:
    """½ Σ_v (g_v − z_v)², summed over the V classes. Unit: squared logits, so it grows with V.

    Ba & Caruana 2014, equation 1. g: the student's logits [N, V]; z: the teacher's, not centred, so the
    student learns their common shift too. Exact for dense targets; a class the teacher excludes (-inf)
    makes it infinite.
    """
    return _by_rows(logits, _logit_l2(targets), reduction)


def tempered_kl(
    logits: Tensor, targets: TorchDense, temperature: float = 1.0, *, reduction: Reduction = "mean"
) -> Tensor:
    """T² KL(p_T ‖ q_T), with p_T = softmax(z / T) of the teacher and q_T of the student's logits [N, V].

    Hinton, Vinyals & Dean 2015; T² keeps the gradient's size comparable to a hard label's. Exact for dense
    targets; its gradient is that of `tempered_cross_entropy`.
    """
    return _by_rows(logits, _tempered_kl(targets, temperature), reduction)


def tempered_cross_entropy(
    logits: Tensor, targets: TorchDense, temperature: float = 1.0, *, reduction: Reduction = "mean"
) -> Tensor:
    """T² H(p_T, q_T) = `tempered_kl` + T² H(p_T), for logits [N, V].

    Hinton, Vinyals & Dean 2015. Exact for dense targets.
    """
    t = temperature

    def formula(z: Tensor, start: int, stop: int) -> Tensor:
        p = F.softmax(targets.logits[start:stop].to(z.dtype) / t, dim=-1)
        return -t * t * torch.where(p > 0, p * F.log_softmax(z / t, dim=-1), 0).sum(-1)

    return _by_rows(logits, formula, reduction)


def topk_kl(
    logits: Tensor,
    targets: TorchTopK | TorchTopP,
    temperature: float = 1.0,
    *,
    reduction: Reduction = "mean",
) -> Tensor:
    """T² Σ_b P_b ln(P_b / Q_b) over the buckets of a target: each stored class, and everything else as one.

    P at temperature T from the stored log-probabilities and the tail's mass at beta = 1/T, as it was measured
    or, where slopes are stored, interpolated (`tail_log_mass_at`, with `tail_error_at` as a bound); Q from
    all of the student's logits [N, V], its tail being the log-sum-exp of the classes that are not stored.
    Exact for the KL between the bucketed distributions, hence a lower bound of the full KL (data
    processing), equal to it when teacher and student agree on the shape of the tail. The tail is never
    dropped and nothing is renormalised over k, so the student's tail mass is learned, without bias.
    Raises ValueError when the tail's mass is not known at 1/T.
    """
    return _by_rows(logits, _topk_kl(targets, temperature), reduction)


def sparse_cross_entropy(logits: Tensor, targets: TorchSparse, *, reduction: Reduction = "mean") -> Tensor:
    """lse(z) − Σ_e w_e z[id_e]: the cross-entropy H(p̂, q) with the sparse estimate p̂, for logits [N, V].

    Cross-entropy is linear in p, E[p̂] = p and Σ p̂ = 1, so value and gradient (q − p̂; the coefficient of
    the log-sum-exp is exactly 1) are unbiased for those of H(p, q), and so of the forward KL, at
    temperature 1. Its minimum over q is H(p̂), not 0. A class may occur several times; weights add up.
    Sparse Logit Sampling (ACL 2025) with the sampling of Barnes et al. (2402.14925).
    """
    return _by_rows(logits, _sparse_cross_entropy(targets), reduction)


def cosine_distance(vectors: Tensor, targets: TorchEmbedding, *, reduction: Reduction = "mean") -> Tensor:
    """1 − cos(g, e), between 0 and 2, for the student's vectors g [N, D] and the teacher's e.

    Indifferent to the lengths of both. Where either is shorter than 1e-8, nearer to 1 than it is, and 1 for
    zeros. Exact up to what the codec keeps of e. How SEED (Fang et al. 2021) and CompRess (Koohpayegani et
    al. 2020) compare embeddings.
    """
    return _by_rows(vectors, _cosine(targets), reduction)


def feature_mse(vectors: Tensor, targets: TorchEmbedding, *, reduction: Reduction = "mean") -> Tensor:
    """(1/D) Σ_d (g_d − e_d)², the mean over the D features, for vectors g [N, D]. Unit: squared features.

    The hint loss of FitNets (Romero et al. 2015), but for a factor. Exact up to what the codec keeps of e.
    """
    return _by_rows(vectors, _feature_mse(targets), reduction)


def hard_cross_entropy(logits: Tensor, labels: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """−ln q[label] for labels int64 [N] and logits [N, V]."""
    return _by_rows(logits, _hard(labels), reduction)


def distillation_loss(
    config: LossConfig,
    logits: Tensor,
    targets: TorchTargets | None,
    labels: Tensor | None,
    *,
    reduction: Reduction = "mean",
) -> Tensor:
    """(1 − hard_weight) · soft + hard_weight · hard, as configured, in one pass over the logits [N, V].

    Raises ConfigError when the kind does not fit the targets, or labels are needed and there are none.
    """
    kind = loss_kind(config, targets)
    hard_weight = 1.0 if kind == "hard" else config.hard_weight
    parts: list[tuple[float, Formula]] = []
    if hard_weight < 1 and targets is not None:
        parts.append((1 - hard_weight, _SOFT[kind](targets, config.temperature)))
    if hard_weight > 0:
        if labels is None:
            raise ConfigError(
                "a loss with hard labels needs them in the store: token ids, or an input named label, and a "
                "head of logits"
            )
        parts.append((hard_weight, _hard(labels)))

    def formula(z: Tensor, start: int, stop: int) -> Tensor:
        return torch.stack([weight * part(z, start, stop) for weight, part in parts]).sum(0)

    return _by_rows(logits, formula, reduction)


def loss_kind(config: LossConfig, targets: TorchTargets | None) -> str:
    """The kind that a configuration means for these targets. Raises ConfigError when they do not fit."""
    if config.kind == "hard":
        return "hard"
    if targets is None:
        raise ConfigError('loss.kind must be "hard" where no targets are read')
    fitting = _FITTING[type(targets)]
    kind = fitting[0] if config.kind == "auto" else config.kind
    if kind not in fitting:
        raise ConfigError(
            f"loss.kind {kind} cannot learn from {type(targets).__name__.removeprefix('Torch').lower()} "
            f'targets; use {" or ".join(fitting)}, or "hard"'
        )
    if not kind.endswith("_kl") and config.temperature != 1:
        raise ConfigError(f"loss.temperature must be 1 for {kind}, not {config.temperature}")
    if isinstance(targets, TorchTopK | TorchTopP):
        try:
            targets.require(1 / config.temperature)
        except ValueError as error:
            raise ConfigError(f"loss.temperature: {error}") from None
    return kind


def _logit_l2(targets: TorchDense) -> Formula:
    def formula(z: Tensor, start: int, stop: int) -> Tensor:
        return 0.5 * (z - targets.logits[start:stop].to(z.dtype)).square().sum(-1)

    return formula


def _tempered_kl(targets: TorchDense, t: float) -> Formula:
    def formula(z: Tensor, start: int, stop: int) -> Tensor:
        log_p = F.log_softmax(targets.logits[start:stop].to(z.dtype) / t, dim=-1)
        log_ratio = log_p - F.log_softmax(z / t, dim=-1)
        return t * t * torch.where(log_p > -torch.inf, log_p.exp() * log_ratio, 0).sum(-1)

    return formula


def _topk_kl(targets: TorchTopK | TorchTopP, t: float) -> Formula:
    targets.require(1 / t)

    def formula(z: Tensor, start: int, stop: int) -> Tensor:
        some = targets.slice(start, stop)
        part = some.padded() if isinstance(some, TorchTopP) else some
        z = z / t
        lse = torch.logsumexp(z, dim=-1, keepdim=True)
        rest = part.tail_log_mass_at(1 / t)[:, None]
        log_p = F.log_softmax(torch.cat([part.log_probs / t, rest], dim=-1).to(z.dtype), dim=-1)
        # Not -inf: where all classes are stored, the log-sum-exp of nothing has no gradient.
        tail = z.scatter(-1, part.ids, torch.finfo(z.dtype).min).logsumexp(-1, keepdim=True)
        log_q = torch.cat([z.gather(-1, part.ids), tail], dim=-1) - lse
        return t * t * torch.where(log_p > -torch.inf, log_p.exp() * (log_p - log_q), 0).sum(-1)

    return formula


def _sparse_cross_entropy(targets: TorchSparse) -> Formula:
    def formula(z: Tensor, start: int, stop: int) -> Tensor:
        losses: Tensor = _SparsePart.apply(z, targets.slice(start, stop))  # type: ignore[no-untyped-call]
        return losses

    return formula


class _SparsePart(torch.autograd.Function):
    """lse(z) − Σ_e w_e z[id_e] of a part, with q − p̂ written out: autograd's way takes twice the time."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, part: TorchSparse) -> Tensor:
        weights, at = part.weights.to(z.dtype), part.rows * z.shape[-1] + part.ids
        lse = torch.logsumexp(z, dim=-1)
        ctx.save_for_backward(z, lse, weights, at, part.rows)
        return lse.index_add(0, part.rows, weights * z.flatten().index_select(0, at), alpha=-1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        z, lse, weights, at, rows = ctx.saved_tensors
        gradient = (z - lse[:, None]).exp_().mul_(upstream[:, None])
        gradient.view(-1).index_add_(0, at, weights * upstream.index_select(0, rows), alpha=-1)
        return gradient, None


def _cosine(targets: TorchEmbedding) -> Formula:
    def formula(g: Tensor, start: int, stop: int) -> Tensor:
        return 1 - F.cosine_similarity(g, targets.vectors[start:stop].to(g.dtype), dim=-1)

    return formula


def _feature_mse(targets: TorchEmbedding) -> Formula:
    def formula(g: Tensor, start: int, stop: int) -> Tensor:
        return (g - targets.vectors[start:stop].to(g.dtype)).square().mean(-1)

    return formula


def _hard(labels: Tensor) -> Formula:
    def formula(z: Tensor, start: int, stop: int) -> Tensor:
        return F.cross_entropy(z, labels[start:stop], reduction="none")

    return formula


_SOFT: dict[str, Callable[[Any, float], Formula]] = {
    "logit_l2": lambda targets, _: _logit_l2(targets),
    "tempered_kl": _tempered_kl,
    "topk_kl": _topk_kl,
    "sparse_cross_entropy": lambda targets, _: _sparse_cross_entropy(targets),
    "cosine_distance": lambda targets, _: _cosine(targets),
    "feature_mse": lambda targets, _: _feature_mse(targets),
}

_FITTING: dict[type[TorchTargets], tuple[str, ...]] = {
    TorchDense: ("tempered_kl", "logit_l2"),
    TorchTopK: ("topk_kl",),
    TorchTopP: ("topk_kl",),
    TorchSparse: ("sparse_cross_entropy",),
    TorchEmbedding: ("cosine_distance", "feature_mse"),
}


def _by_rows(logits: Tensor, formula: Formula, reduction: Reduction) -> Tensor:
    losses: Tensor = _ByRows.apply(logits, formula)  # type: ignore[no-untyped-call]
    match reduction:
        case "none":
            return losses
        case "sum":
            return losses.sum()
        case "mean":
            return losses.mean()


class _ByRows(torch.autograd.Function):
    """Losses [N] of logits [N, V] by a row-wise formula, part by part, forward and backward.

    The backward pass evaluates each part again and differentiates it: that costs a pass over the logits and
    saves keeping [N, V] of anything between the two.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, formula: Formula) -> Tensor:
        ctx.save_for_backward(logits)
        ctx.formula = formula
        if not len(logits):
            return _upcast(logits).new_zeros(0)
        return torch.cat([formula(_upcast(logits[a:b]), a, b) for a, b in _parts(logits)])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (logits,) = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        for a, b in _parts(logits):
            with torch.enable_grad():
                z = _upcast(logits[a:b]).detach().requires_grad_()
                losses = ctx.formula(z, a, b)
            gradient[a:b] = torch.autograd.grad(losses, z, upstream[a:b])[0]
        return gradient, None


def _upcast(logits: Tensor) -> Tensor:
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()


def _parts(logits: Tensor) -> list[tuple[int, int]]:
    rows = max(1, PART_ELEMENTS // max(1, logits.shape[-1]))
    return [(start, min(start + rows, len(logits))) for start in range(0, len(logits), rows)]
