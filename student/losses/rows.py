"""How a formula for a few rows becomes a loss of all, and is differentiated: part by part.

Beside the logits [N, V] and their gradient, both in the logits' own dtype, there is never more than a part in
float32, whatever N and V; of `LinearLogits` there are not even these two. Second derivatives are not
available.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from student.losses.formula import Formula, parts, rows_per_part, upcast
from student.losses.linear import LinearLogits

Reduction = Literal["mean", "sum", "none"]

Logits = Tensor | LinearLogits
"""Of a student, [N, V]: made, or the hidden states and the matrix that they would be made of."""


def by_rows(
    logits: Logits, formula: Formula, reduction: Reduction = "mean", weights: Tensor | None = None
) -> Tensor:
    """weights[n] · the loss of row n: each of them [N], or their sum, or their mean over the N rows.

    weights: [N], not differentiated; ones by default.
    """
    losses: Tensor
    if not isinstance(logits, LinearLogits):
        losses = _ByRows.apply(logits, formula)  # type: ignore[no-untyped-call]
    elif reduction == "none":
        losses = logits.each(formula)
    else:
        total = logits.sum(formula, weights)
        return total / len(logits) if reduction == "mean" else total
    if weights is not None:
        losses = losses * weights.detach()
    return reduced(losses, reduction)


def parts_of(logits: Logits) -> Iterator[tuple[int, int, Tensor]]:
    """start, stop and logits [C, V] of one part after the other, in float32 (float64 for those of float64).

    For `Formula.losses`; not differentiable. Of `LinearLogits` in memory that the next part uses again.
    """
    if isinstance(logits, LinearLogits):
        return logits.parts()
    return ((a, b, upcast(logits[a:b].detach())) for a, b in _parts(logits))


def reduced(losses: Tensor, reduction: Reduction) -> Tensor:
    """Losses [N] as they are, summed, or averaged."""
    match reduction:
        case "none":
            return losses
        case "sum":
            return losses.sum()
        case "mean":
            return losses.mean()


class _ByRows(torch.autograd.Function):
    """Losses [N] of logits [N, V].

    The backward pass evaluates each part again and differentiates it: that costs a pass over the logits and
    saves keeping [N, V] of anything between the two.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, formula: Formula) -> Tensor:
        ctx.save_for_backward(logits)
        ctx.formula = formula
        losses = [formula.losses(upcast(logits[a:b]), a, b) for a, b in _parts(logits)]
        return torch.cat(losses) if losses else upcast(logits).new_zeros(0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (logits,) = ctx.saved_tensors
        gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
        for a, b in _parts(logits):
            z = upcast(gradient[a:b].copy_(logits[a:b]))
            part = ctx.formula.derive(z, a, b, upstream[a:b])[1]
            if part.data_ptr() != gradient[a:b].data_ptr():
                gradient[a:b] = part
        return gradient, None


def _parts(logits: Tensor) -> Any:
    return parts(len(logits), rows_per_part(logits.shape[-1]))
