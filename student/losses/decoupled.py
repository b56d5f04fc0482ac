"""Decoupled KD: what the teacher says of the label, and what it says of all others, weighted apart."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from student.losses.divergences import NOTHING, kl
from student.losses.formula import Formula
from student.losses.rows import Logits, Reduction, by_rows
from student.targets import TorchDense


def decoupled_kd(
    logits: Logits,
    targets: TorchDense,
    labels: Tensor,
    temperature: float = 1.0,
    target_weight: float = 1.0,
    other_weight: float = 8.0,
    *,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """T² [α KL(b_p ‖ b_q) + β KL(p̂ ‖ q̂)] for labels int64 [N]: b is (the label's probability, all others'),
    p̂ the distribution over the others alone; α = target_weight, β = other_weight.

    Decoupled KD (Zhao et al. 2022, equation 7); with α = 1 and β = 1 − p[label] it is `tempered_kl`.
    Exact for dense targets, which it needs: a bucketed tail does not say how the others share it.
    """
    formula = Decoupled(targets, labels, temperature, target_weight, other_weight)
    return by_rows(logits, formula, reduction, weights)


class Decoupled(Formula):
    """T² [α KL of the label against all others + β KL among the others]."""

    def __init__(
        self,
        targets: TorchDense,
        labels: Tensor,
        temperature: float,
        target_weight: float,
        other_weight: float,
    ) -> None:
        self._targets, self._labels, self._t = targets, labels, temperature
        self._target_weight, self._other_weight = target_weight, other_weight

    def losses(self, z: Tensor, start: int, stop: int) -> Tensor:
        labels = self._labels[start:stop, None]
        binary_p, others_p = self._split(self._targets.logits[start:stop].to(z.dtype) / self._t, labels)
        binary_q, others_q = self._split(z / self._t, labels)
        target, other = kl(binary_p, binary_q).sum(-1), kl(others_p, others_q).sum(-1)
        return self._t**2 * (self._target_weight * target + self._other_weight * other)

    @staticmethod
    def _split(z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """ln of the label's probability and all others', [C, 2], and of each other among these, [C, V]."""
        others = z.scatter(-1, labels, -torch.inf)
        rest = others.logsumexp(-1, keepdim=True)
        binary = F.log_softmax(torch.cat([z.gather(-1, labels), rest], dim=-1), dim=-1)
        return binary.clamp(min=NOTHING), (others - rest).clamp(min=NOTHING)
