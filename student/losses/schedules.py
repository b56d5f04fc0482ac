"""What changes while a student learns: temperature by time or by gradient, weights by how unsure it is."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from student.losses.divergences import NOTHING, kl
from student.losses.formula import Formula, upcast
from student.losses.rows import Reduction, reduced
from student.targets import TorchDense


def uncertainty(z: Tensor) -> Tensor:
    """H(q) / ln V of logits z [C, V]: [C], 0 where the student is certain, 1 where it knows nothing.

    Dynamic KD (Li et al. 2021). Not differentiated.
    """
    log_q = F.log_softmax(z.detach(), dim=-1).clamp(min=NOTHING)
    return -(log_q.exp() * log_q).sum(-1) / math.log(max(2, z.shape[-1]))


class Uncertain(Formula):
    """w · formula, w being the `uncertainty` of each row: a student learns most where it is unsure."""

    def __init__(self, formula: Formula) -> None:
        self._formula = formula

    def losses(self, z: Tensor, start: int, stop: int) -> Tensor:
        return uncertainty(z) * self._formula.losses(z, start, stop)

    def derive(self, z: Tensor, start: int, stop: int, upstream: Tensor) -> tuple[Tensor, Tensor]:
        w = uncertainty(z)
        losses, gradient = self._formula.derive(z, start, stop, w * upstream)
        return w * losses, gradient


class Routed(Formula):
    """w · small + (1 − w) · large, w being the `uncertainty` of each row (Dynamic KD, Li et al. 2021).

    Where the student is unsure the smaller teacher, easier to follow, weighs more; later the larger.
    """

    def __init__(self, small: Formula, large: Formula) -> None:
        self._small, self._large = small, large

    def losses(self, z: Tensor, start: int, stop: int) -> Tensor:
        small, large = (formula.losses(z, start, stop) for formula in (self._small, self._large))
        return torch.lerp(large, small, uncertainty(z))

    def derive(self, z: Tensor, start: int, stop: int, upstream: Tensor) -> tuple[Tensor, Tensor]:
        w = uncertainty(z)
        small, gradient = self._small.derive(z.clone(), start, stop, w * upstream)
        large, other = self._large.derive(z, start, stop, (1 - w) * upstream)
        return torch.lerp(large, small, w), gradient.add_(other)


class LearnedTemperature(nn.Module):
    """T = lowest + span · σ(θ), θ learning to make the student's loss larger: CTKD (Li et al. 2023).

    Its gradient is reversed and multiplied by a factor that grows from 0 to 1 by half a cosine over
    `warmup_steps`, so that the task gets harder slowly. Call it once a step, give the temperature to
    `adversarial_kl`, and the optimiser its parameter. 1 + 20 σ(θ) and ten epochs are the paper's.
    """

    def __init__(self, warmup_steps: int, lowest: float = 1.0, span: float = 20.0) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(()))
        self._warmup_steps, self._lowest, self._span = warmup_steps, lowest, span

    def forward(self, step: int) -> Tensor:
        """The temperature at a step, a float32 scalar."""
        progress = min(1.0, step / max(1, self._warmup_steps))
        reversed_: Tensor = _Reversed.apply(self.theta, 0.5 * (1 - math.cos(math.pi * progress)))  # type: ignore[no-untyped-call]
        return self._lowest + self._span * reversed_.sigmoid()


class _Reversed(torch.autograd.Function):
    """x, whose gradient is −factor times what comes (Ganin & Lempitsky 2015)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return -ctx.factor * upstream, None


def adversarial_kl(
    logits: Tensor, targets: TorchDense, temperature: Tensor, *, reduction: Reduction = "mean"
) -> Tensor:
    """T² KL(p_T ‖ q_T) of logits [N, V], differentiable in T too: a scalar, or one for each target [N].

    CTKD's loss (Li et al. 2023), `tempered_kl` for a `LearnedTemperature`. Exact for dense targets. Keeps
    [N, V] in float32 for the backward pass: it is for heads of few classes.
    """
    z = upcast(logits)
    t = temperature.to(z.dtype).reshape(-1, 1)
    log_p, log_q = (F.log_softmax(x / t, dim=-1) for x in (targets.logits.to(z.dtype), z))
    each = t.squeeze(-1) ** 2 * kl(log_p.clamp(min=NOTHING), log_q.clamp(min=NOTHING)).sum(-1)
    return reduced(each, reduction)
