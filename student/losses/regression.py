"""Squared differences of raw logits: what the teacher says before any softmax.

Means over the N targets; reduction="sum" or "none" ([N]) is for callers that weight by themselves, `weights`
[N] multiplies each target's loss.
"""

from __future__ import annotations

from torch import Tensor

from student.losses.formula import Formula
from student.losses.rows import Logits, Reduction, by_rows
from student.targets import TorchDense


def logit_l2(
    logits: Logits,
    targets: TorchDense,
    *,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """½ Σ_v (g_v − z_v)², summed over the V classes. Unit: squared logits, so it grows with V.

    Ba & Caruana 2014, equation 1. g: the student's logits [N, V]; z: the teacher's, not centred, so the
    student learns their common shift too. Exact for dense targets; a class the teacher excludes (-inf)
    makes it infinite.
    """
    return by_rows(logits, LogitL2(targets), reduction, weights)


def annealed_logit_l2(
    logits: Logits,
    targets: TorchDense,
    factor: float,
    *,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """½ Σ_v (g_v − Φ z_v)², z centred to a mean of 0 and Φ = factor growing to 1 (`LossConfig.at`).

    The first phase of Annealing-KD (Jafari et al. 2021), whose second is cross-entropy on labels. Centred,
    because a common shift that grows with Φ teaches nothing. Exact for dense targets.
    """
    return by_rows(logits, LogitL2(targets, factor, centred=True), reduction, weights)


class LogitL2(Formula):
    """½ Σ_v (g_v − factor · z_v)²."""

    def __init__(self, targets: TorchDense, factor: float = 1.0, centred: bool = False) -> None:
        self._targets, self._factor, self._centred = targets, factor, centred

    def losses(self, z: Tensor, start: int, stop: int) -> Tensor:
        told = self._targets.logits[start:stop].to(z.dtype)
        if self._centred:
            told = told - told.mean(-1, keepdim=True)
        return 0.5 * (z - self._factor * told).square().sum(-1)
