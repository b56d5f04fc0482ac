"""Every loss of logits beside the dense float64 formula that it stands for, written with probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from student.losses import (
    annealed_logit_l2,
    decoupled_kd,
    hard_cross_entropy,
    jensen_shannon,
    logit_l2,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    sparse_cross_entropy,
    tempered_cross_entropy,
    tempered_kl,
    topk_kl,
    total_variation,
)
from tests.student.formulas import (
    COUNTS,
    LABELS,
    SPARSE,
    TEACHER,
    K,
    N,
    V,
    bucketed,
    dense,
    densified,
    topk,
    topp,
)


class Case(NamedTuple):
    """ours: (logits, reduction=, weights=) -> losses. dense: logits float64 [N, V] -> losses [N]."""

    ours: Callable[..., Tensor]
    dense: Callable[[Tensor], Tensor]


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return torch.special.xlogy(p, p / q).nan_to_num().sum(-1)


DIVERGENCES: dict[str, tuple[Callable[..., Tensor], Callable[[Tensor, Tensor], Tensor], int]] = {
    "kl": (tempered_kl, _kl, 2),
    "reverse_kl": (reverse_kl, lambda p, q: _kl(q, p), 2),
    "jensen_shannon": (
        jensen_shannon,
        lambda p, q: (_kl(p, (p + q) / 2) + _kl(q, (p + q) / 2)) / 2,
        2,
    ),
    "jensen_shannon beta=0.2": (
        lambda *a, **kw: jensen_shannon(*a, beta=0.2, **kw),
        lambda p, q: 0.2 * _kl(p, 0.2 * p + 0.8 * q) + 0.8 * _kl(q, 0.2 * p + 0.8 * q),
        2,
    ),
    "skew_kl": (skew_kl, lambda p, q: _kl(p, 0.1 * p + 0.9 * q), 2),
    "skew_reverse_kl": (skew_reverse_kl, lambda p, q: _kl(q, 0.9 * p + 0.1 * q), 2),
    "total_variation": (total_variation, lambda p, q: (p - q).abs().sum(-1) / 2, 1),
}
"""Loss, the same of probabilities [N, B], and the power of T that it is multiplied by."""


def _decoupled(z: Tensor, t: float) -> Tensor:
    p, q = (TEACHER / t).softmax(-1), (z / t).softmax(-1)
    losses = []
    for n, label in enumerate(LABELS.tolist()):
        others = [v for v in range(V) if v != label]
        a, b = p[n, label], q[n, label]
        target = a * (a / b).log() + (1 - a) * ((1 - a) / (1 - b)).log()
        losses.append(target + 8 * _kl(p[n, others] / (1 - a), q[n, others] / (1 - b)))
    return t * t * torch.stack(losses)


def _of_head(z: Tensor, formula: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """What SPARSE keeps with its own probability, and all else as one."""
    losses = []
    for q, begin, k, end in zip(
        z.softmax(-1), SPARSE.bounds, SPARSE.head_counts, SPARSE.bounds[1:], strict=False
    ):
        ids, weights = SPARSE.ids[begin:end], SPARSE.weights[begin:end].double()
        others = torch.ones(V, dtype=torch.bool).index_fill(0, ids[:k], False)
        p = torch.cat([weights[:k], weights[k:].sum()[None]])
        losses.append(formula(p, torch.cat([q[ids[:k]], q[others].sum()[None]])))
    return torch.stack(losses)


def _hard(z: Tensor, smoothing: float) -> Tensor:
    told = torch.full((N, V), smoothing / V, dtype=torch.float64)
    told[torch.arange(N), LABELS] += 1 - smoothing
    return -(told * z.softmax(-1).log()).sum(-1)


CASES: dict[str, Case] = {
    "hard": Case(lambda z, **kw: hard_cross_entropy(z, LABELS, **kw), lambda z: _hard(z, 0)),
    "hard smoothed": Case(
        lambda z, **kw: hard_cross_entropy(z, LABELS, smoothing=0.1, **kw), lambda z: _hard(z, 0.1)
    ),
    "sparse_cross_entropy": Case(
        lambda z, **kw: sparse_cross_entropy(z, SPARSE, **kw),
        lambda z: -(densified(SPARSE) * z.softmax(-1).log()).sum(-1),
    ),
    "logit_l2": Case(
        lambda z, **kw: logit_l2(z, dense(TEACHER), **kw), lambda z: 0.5 * ((z - TEACHER) ** 2).sum(-1)
    ),
    "annealed_logit_l2": Case(
        lambda z, **kw: annealed_logit_l2(z, dense(TEACHER), 0.3, **kw),
        lambda z: 0.5 * ((z - 0.3 * (TEACHER - TEACHER.mean(-1, keepdim=True))) ** 2).sum(-1),
    ),
}

for _t in (1.0, 4.0):
    CASES[f"tempered_cross_entropy T={_t:g}"] = Case(
        lambda z, t=_t, **kw: tempered_cross_entropy(z, dense(TEACHER), t, **kw),
        lambda z, t=_t: -t * t * ((TEACHER / t).softmax(-1) * (z / t).softmax(-1).log()).sum(-1),
    )
    CASES[f"decoupled_kd T={_t:g}"] = Case(
        lambda z, t=_t, **kw: decoupled_kd(z, dense(TEACHER), LABELS, t, **kw),
        lambda z, t=_t: _decoupled(z, t),
    )
    for _name, (_ours, _formula, _power) in DIVERGENCES.items():
        CASES[f"{_name} T={_t:g}"] = Case(
            lambda z, ours=_ours, t=_t, **kw: ours(z, dense(TEACHER), t, **kw),
            lambda z, formula=_formula, t=_t, power=_power: (
                t**power * formula((TEACHER / t).softmax(-1), (z / t).softmax(-1))
            ),
        )
        _ours = topk_kl if _name == "kl" else _ours
        for _codec, _targets, _counts in (
            ("topk", topk(TEACHER), [K] * N),
            ("topp", topp(TEACHER, COUNTS), COUNTS),
        ):
            CASES[f"{_name} of {_codec} T={_t:g}"] = Case(
                lambda z, ours=_ours, t=_t, targets=_targets, **kw: ours(z, targets, t, **kw),
                lambda z, formula=_formula, t=_t, power=_power, counts=_counts: (
                    t**power * bucketed(z, t, counts, formula)
                ),
            )

for _name, (_ours, _formula, _) in list(DIVERGENCES.items())[1:]:
    CASES[f"{_name} of threshold"] = Case(
        lambda z, ours=_ours, **kw: ours(z, SPARSE, **kw),
        lambda z, formula=_formula: _of_head(z, formula),
    )
