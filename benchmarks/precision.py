"""What bfloat16 costs each loss: the error of its gradient, over that of float64 logits.

    python -m benchmarks.precision

256 targets of 4,096 classes. logits: of the same logits in float32, or rounded to bfloat16 (as a model's own
are under autocast). hidden, matrix: of a fused pass under autocast, whose products are in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.record import record
from pipeline.targets.codecs import Threshold, TopK
from student.losses import (
    LinearLogits,
    decoupled_kd,
    hard_cross_entropy,
    jensen_shannon,
    logit_l2,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    sparse_cross_entropy,
    tempered_kl,
    topk_kl,
    total_variation,
)
from student.losses.rows import Logits
from student.targets import TorchDense, to_torch

TARGETS, CLASSES, WIDTH = 256, 4096, 256


def losses() -> dict[str, Callable[[Logits], Tensor]]:
    """Each loss with its targets."""
    teacher = torch.randn(TARGETS, CLASSES, generator=torch.Generator().manual_seed(0)) * 2.5
    dense, labels = TorchDense(teacher), teacher.argmax(-1)
    threshold, top = Threshold(0.01), TopK(32, (0.25, 1.0))
    draws = np.random.default_rng(0).random((TARGETS, threshold.draws))
    sparse = to_torch(threshold.decode(threshold.encode(teacher.numpy(), draws), CLASSES))
    topk = to_torch(top.decode(top.encode(teacher.numpy(), draws[:, :0]), CLASSES))
    found: dict[str, Callable[..., Tensor]] = {
        "hard_cross_entropy": partial(hard_cross_entropy, labels=labels),
        "sparse_cross_entropy": partial(sparse_cross_entropy, targets=sparse),
    }
    for t in (1.0, 4.0):
        found |= {
            f"topk_kl, T = {t:g}": partial(topk_kl, targets=topk, temperature=t),
            f"tempered_kl, T = {t:g}": partial(tempered_kl, targets=dense, temperature=t),
        }
    return found | {
        "reverse_kl": partial(reverse_kl, targets=dense),
        "jensen_shannon": partial(jensen_shannon, targets=dense),
        "skew_kl": partial(skew_kl, targets=dense),
        "skew_reverse_kl": partial(skew_reverse_kl, targets=dense),
        "total_variation": partial(total_variation, targets=dense),
        "decoupled_kd, T = 4": partial(decoupled_kd, targets=dense, labels=labels, temperature=4.0),
        "logit_l2": partial(logit_l2, targets=dense),
    }


def errors(loss: Callable[..., Tensor], hidden: Tensor, weight: Tensor) -> dict[str, float]:
    """|g − g*| / |g*| of each gradient g, g* being that in float64."""

    def gradients(*inputs: Tensor, bfloat16: bool = False) -> tuple[Tensor, ...]:
        leaves = [x.detach().requires_grad_() for x in inputs]
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = LinearLogits(*leaves) if len(leaves) == 2 else leaves[0]
        return torch.autograd.grad(loss(logits, reduction="sum"), leaves)

    def error(found: Tensor, exact: Tensor) -> float:
        return float((found.double() - exact).norm() / exact.norm())

    z = hidden @ weight.T
    (exact,), (h, w) = gradients(z), gradients(hidden, weight)
    fused = gradients(hidden.float(), weight.float(), bfloat16=True)
    return {
        "logits float32": error(gradients(z.float())[0], exact),
        "logits bfloat16": error(gradients(z.bfloat16())[0], exact),
        "hidden, autocast": error(fused[0], h),
        "matrix, autocast": error(fused[1], w),
    }


def main() -> None:
    """Measure and record."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(TARGETS, WIDTH, generator=generator, dtype=torch.float64)
    weight = torch.randn(CLASSES, WIDTH, generator=generator, dtype=torch.float64) * 2 * WIDTH**-0.5
    record("precision", {name: errors(loss, hidden, weight) for name, loss in losses().items()})


if __name__ == "__main__":
    main()
