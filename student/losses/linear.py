"""Logits of a language model that are never made whole: hidden states and the matrix in front of the loss.

[N, V] logits of a large vocabulary and their gradient take more memory than all else in a step. Here a part
of the rows is multiplied by the matrix, its losses and their gradient are worked out by a `Formula`, and the
gradient is multiplied back, before the next part is made: the gradients of hidden states and matrix are ready
when the loss is, and no product is computed twice (as in Liger-Kernel's fused linear losses).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from student.losses.formula import Formula, parts, rows_per_part, upcast

CLASSES_PER_PRODUCT = 1 << 14
"""Rows of the matrix whose gradient is accumulated at a time where that has to be converted."""


@dataclass(frozen=True)
class LinearLogits:
    """cap · tanh(scale · (hidden Wᵀ + bias) / cap): logits [N, V], not made.

    hidden: [N, D]. weight: W, [V, D]. bias: [V] or None. scale: Cohere's `logit_scale`, 1 / Granite's
    `logits_scaling`. cap: Gemma's `final_logit_softcapping`; None for plain scale · (hidden Wᵀ + bias).
    Products are computed in the dtype of hidden (under autocast, its dtype), losses in float32, or float64
    for float64. The gradient of the matrix is summed in float32.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    cap: float | None = None

    def __post_init__(self) -> None:
        if torch.is_autocast_enabled(self.hidden.device.type):
            dtype = torch.get_autocast_dtype(self.hidden.device.type)
            object.__setattr__(self, "hidden", self.hidden.to(dtype))

    @classmethod
    def of(
        cls, hidden: Tensor, head: nn.Linear, scale: float = 1.0, cap: float | None = None
    ) -> LinearLogits:
        """What the layer `head` would make of hidden states [N, D]."""
        return cls(hidden, head.weight, head.bias, scale, cap)

    def __len__(self) -> int:
        return len(self.hidden)

    @property
    def shape(self) -> torch.Size:
        """[N, V]."""
        return torch.Size((len(self.hidden), len(self.weight)))

    @property
    def ndim(self) -> int:
        return 2

    @property
    def device(self) -> torch.device:
        return self.hidden.device

    def first(self, classes: int) -> LinearLogits:
        """Of the first so many classes."""
        if classes >= len(self.weight):
            return self
        bias = None if self.bias is None else self.bias[:classes]
        return replace(self, weight=self.weight[:classes], bias=bias)

    def make(self) -> Tensor:
        """All of them, [N, V], in the dtype of hidden; differentiable as any tensor."""
        bias = None if self.bias is None else self.bias.to(self.hidden.dtype)
        with torch.autocast(self.device.type, enabled=False):
            z = self.scale * nn.functional.linear(self.hidden, self.weight.to(self.hidden.dtype), bias)
            return z if self.cap is None else self.cap * torch.tanh(z / self.cap)

    def parts(self) -> Iterator[tuple[int, int, Tensor]]:
        """As `student.losses.rows.parts_of`."""
        bias = None if self.bias is None else self.bias.detach()
        return _Pass(self.hidden.detach(), self.weight.detach(), bias, self.scale, self.cap).logits()

    def sum(self, formula: Formula, weights: Tensor | None = None) -> Tensor:
        """Σ_n weights[n] · loss of row n, with the gradients made at once: it can be differentiated once.

        weights: [N], not differentiated; ones by default.
        """
        if weights is None:
            weights = upcast(self.hidden[:0]).new_ones(len(self))
        return self._apply(_Sum, formula, weights.detach())

    def each(self, formula: Formula) -> Tensor:
        """Losses [N]. Their gradients cannot be made before it is known what each is multiplied by, so the
        backward pass makes the logits again, a part at a time.
        """
        return self._apply(_Each, formula)

    def _apply(self, function: Any, formula: Formula, *more: Tensor) -> Tensor:
        kept = _Settings(self.scale, self.cap, formula, torch.is_grad_enabled())
        with torch.autocast(self.device.type, enabled=False):
            found: Tensor = function.apply(self.hidden, self.weight, self.bias, kept, *more)
        return found


@dataclass(frozen=True)
class _Settings:
    """What an autograd function gets besides tensors. differentiable: whether gradients may be asked for."""

    scale: float
    cap: float | None
    formula: Formula
    differentiable: bool


class _Pass:
    """One walk over all rows, and what it works out: losses [N] and, if upstream [N] is given, gradients."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float, cap: float | None
    ) -> None:
        self.hidden, self.weight, self.bias, self.scale, self.cap = hidden, weight, bias, scale, cap
        self.matrix = weight.to(hidden.dtype)
        # A part as large as a quarter of the matrix costs little beside the matrix' gradient, and has enough
        # rows that reading the matrix does not bound the speed of a product.
        most = max(rows_per_part(len(weight)), weight.shape[1] // 4, 1)
        self.size = min(len(hidden), most)
        self.losses = upcast(hidden[:0]).new_zeros(len(hidden))

    def forward(self, formula: Formula) -> None:
        """Losses alone."""
        for a, b, z in self.logits():
            self.losses[a:b] = formula.losses(z, a, b)

    def derive(
        self, formula: Formula, upstream: Tensor, wanted: tuple[bool, bool, bool]
    ) -> list[Tensor | None]:
        """Losses, and the gradients of Σ upstream · losses in hidden, weight and bias, as far as wanted."""
        total = self.losses.dtype
        for_hidden = torch.empty_like(self.hidden) if wanted[0] else None
        for_weight = torch.zeros_like(self.weight, dtype=total) if wanted[1] else None
        for_bias = torch.zeros_like(self.bias, dtype=total) if wanted[2] and self.bias is not None else None
        for a, b, z in self.logits():
            slope = None if self.cap is None else 1 - (z / self.cap).square_()
            self.losses[a:b], gradient = formula.derive(z, a, b, upstream[a:b])
            if slope is not None:
                gradient.mul_(slope)
            if self.scale != 1:
                gradient.mul_(self.scale)
            if for_bias is not None:
                for_bias += gradient.sum(0)
            gradient = gradient.to(self.hidden.dtype)
            if for_hidden is not None:
                torch.mm(gradient, self.matrix, out=for_hidden[a:b])
            if for_weight is not None:
                _accumulate(for_weight, gradient, self.hidden[a:b])
        return [
            for_hidden,
            None if for_weight is None else for_weight.to(self.weight.dtype),
            None if for_bias is None or self.bias is None else for_bias.to(self.bias.dtype),
        ]

    def logits(self) -> Iterator[tuple[int, int, Tensor]]:
        """start, stop and logits [C, V] of each part, in memory that the next one uses again."""
        made = self.matrix.new_empty((self.size, len(self.weight)))
        worked = upcast(made)
        for a, b in parts(len(self.hidden), self.size) if self.size else ():
            z = torch.mm(self.hidden[a:b], self.matrix.T, out=made[: b - a])
            if self.bias is not None:
                z += self.bias
            if worked is not made:
                z = worked[: b - a].copy_(z)
            if self.scale != 1:
                z *= self.scale
            if self.cap is not None:
                z.div_(self.cap).tanh_().mul_(self.cap)
            yield a, b, z


def _accumulate(total: Tensor, gradient: Tensor, hidden: Tensor) -> None:
    """total [V, D] += gradientᵀ [V, C] · hidden [C, D]; of another dtype, some classes at a time."""
    if total.dtype == hidden.dtype:
        total.addmm_(gradient.T, hidden)
        return
    for a, b in parts(len(total), CLASSES_PER_PRODUCT):
        total[a:b] += gradient[:, a:b].T @ hidden


class _Sum(torch.autograd.Function):
    """The weighted sum of all losses; gradients are made in the forward pass and scaled in the backward."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, settings: _Settings, weights: Tensor
    ) -> Tensor:
        walk = _Pass(hidden, weight, bias, settings.scale, settings.cap)
        if settings.differentiable and any(ctx.needs_input_grad[:3]):
            ctx.gradients = walk.derive(
                settings.formula, weights.to(walk.losses.dtype), ctx.needs_input_grad[:3]
            )
        else:
            walk.forward(settings.formula)
        return (walk.losses * weights).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                'a sum or mean of LinearLogits can be differentiated once; reduction="none" can be again'
            )
        gradients, ctx.gradients = (
            ctx.gradients,
            None,
        )  # written over, then the parameters' own
        return (*(None if each is None else each.mul_(upstream) for each in gradients), None, None)


class _Each(torch.autograd.Function):
    """The loss of each row; the backward pass makes the logits again."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, settings: _Settings) -> Tensor:
        ctx.save_for_backward(hidden, weight, bias)
        ctx.settings = settings
        walk = _Pass(hidden, weight, bias, settings.scale, settings.cap)
        walk.forward(settings.formula)
        return walk.losses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias = ctx.saved_tensors
        walk = _Pass(hidden, weight, bias, ctx.settings.scale, ctx.settings.cap)
        return (*walk.derive(ctx.settings.formula, upstream, ctx.needs_input_grad[:3]), None)
