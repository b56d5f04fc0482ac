"""Values and gradients of every loss against dense float64 formulas written here from scratch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from student import losses
from student.losses import (
    cosine_distance,
    feature_mse,
    hard_cross_entropy,
    logit_l2,
    sparse_cross_entropy,
    tempered_cross_entropy,
    tempered_kl,
    topk_kl,
)
from student.targets import TorchEmbedding, TorchSparse
from tests.student.formulas import (
    COUNTS,
    LABELS,
    SPARSE,
    TEACHER,
    K,
    N,
    V,
    dense,
    densified,
    logits,
    reference_bucketed,
    topk,
    topp,
)


def reference_kl(z: Tensor, t: float) -> Tensor:
    """Written with probabilities, not with the library's log-space formulas."""
    p, q = (TEACHER / t).softmax(-1), (z / t).softmax(-1)
    return t * t * (p * (p / q).log()).sum(-1)


CASES: dict[str, tuple[Callable[..., Tensor], Callable[[Tensor], Tensor]]] = {
    "logit_l2": (
        lambda z, **kw: logit_l2(z, dense(TEACHER), **kw),
        lambda z: 0.5 * ((z - TEACHER) ** 2).sum(-1),
    ),
    "hard": (
        lambda z, **kw: hard_cross_entropy(z, LABELS, **kw),
        lambda z: -z.softmax(-1).gather(-1, LABELS[:, None]).log().squeeze(-1),
    ),
    "cosine_distance": (
        lambda z, **kw: cosine_distance(z, TorchEmbedding(TEACHER), **kw),
        lambda z: 1 - (z * TEACHER).sum(-1) / (z**2).sum(-1).sqrt() / (TEACHER**2).sum(-1).sqrt(),
    ),
    "feature_mse": (
        lambda z, **kw: feature_mse(z, TorchEmbedding(TEACHER), **kw),
        lambda z: ((z - TEACHER) ** 2).sum(-1) / V,
    ),
    "sparse_cross_entropy": (
        lambda z, **kw: sparse_cross_entropy(z, SPARSE, **kw),
        lambda z: -(densified(SPARSE) * z.softmax(-1).log()).sum(-1),
    ),
}


for _t in (1.0, 2.0, 4.0):
    CASES[f"tempered_kl T={_t:g}"] = (
        lambda z, t=_t, **kw: tempered_kl(z, dense(TEACHER), t, **kw),
        lambda z, t=_t: reference_kl(z, t),
    )
    CASES[f"tempered_cross_entropy T={_t:g}"] = (
        lambda z, t=_t, **kw: tempered_cross_entropy(z, dense(TEACHER), t, **kw),
        lambda z, t=_t: -t * t * ((TEACHER / t).softmax(-1) * (z / t).softmax(-1).log()).sum(-1),
    )
    CASES[f"topk_kl T={_t:g}"] = (
        lambda z, t=_t, **kw: topk_kl(z, topk(TEACHER), t, **kw),
        lambda z, t=_t: reference_bucketed(z, t, [K] * N),
    )
    CASES[f"topk_kl of topp T={_t:g}"] = (
        lambda z, t=_t, **kw: topk_kl(z, topp(TEACHER, COUNTS), t, **kw),
        lambda z, t=_t: reference_bucketed(z, t, COUNTS),
    )


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Callable[..., Tensor], Callable[[Tensor], Tensor]]:
    return CASES[request.param]


@pytest.mark.parametrize("part", [1, 3 * V, losses.PART_ELEMENTS])
def test_value_and_gradient_are_those_of_the_dense_formula(
    case: Any, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "PART_ELEMENTS", part)
    ours, reference = case
    z = logits(1).requires_grad_()
    weights = torch.rand(N, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    value = ours(z, reduction="none")
    wanted = reference(z)
    torch.testing.assert_close(value, wanted, rtol=1e-6, atol=1e-9)
    (gradient,) = torch.autograd.grad((value * weights).sum(), z)
    (wanted_gradient,) = torch.autograd.grad((wanted * weights).sum(), z)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-6, atol=1e-9)


def test_gradients_pass_gradcheck(case: Any) -> None:
    ours, _ = case
    assert torch.autograd.gradcheck(ours, (logits(3).requires_grad_(),))


def test_the_mean_is_over_targets_and_the_sum_is_their_sum(case: Any) -> None:
    ours, _ = case
    each = ours(logits(4), reduction="none")
    assert each.shape == (N,)
    torch.testing.assert_close(ours(logits(4)), each.mean())
    torch.testing.assert_close(ours(logits(4), reduction="sum"), each.sum())


def test_bfloat16_logits_are_worked_on_in_float32(case: Any) -> None:
    """The value is that of the rounded logits to float32's precision; the gradient is rounded once."""
    ours, reference = case
    rounded = logits(6).bfloat16()
    z = rounded.clone().requires_grad_()
    value = ours(z, reduction="none")
    assert value.dtype == torch.float32
    exact = rounded.double().requires_grad_()
    wanted = reference(exact)
    torch.testing.assert_close(value.double(), wanted, rtol=2e-5, atol=2e-5)
    value.sum().backward()
    wanted.sum().backward()
    assert z.grad is not None
    assert exact.grad is not None
    assert z.grad.dtype == torch.bfloat16
    torch.testing.assert_close(z.grad.double(), exact.grad, rtol=2**-8, atol=1e-5)


def test_no_targets_give_an_empty_loss_and_a_zero_gradient() -> None:
    z = torch.zeros(0, V, requires_grad=True)
    loss = sparse_cross_entropy(z, SPARSE.slice(0, 0), reduction="sum")
    loss.backward()
    assert float(loss.detach()) == 0
    assert z.grad is not None
    assert z.grad.shape == (0, V)


def test_memory_beside_logits_and_gradient_is_a_part_not_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """No operation makes a tensor of the size of the logits but the one that holds their gradient."""
    n, v = 512, 16384
    z = torch.randn(n, v).requires_grad_()
    rows = torch.arange(n).repeat_interleave(8)
    targets = TorchSparse(
        torch.randint(0, v, (n * 8,)), torch.full((n * 8,), 1 / 8), rows, np.arange(n + 1) * 8, v
    )

    def large_tensors() -> int:
        z.grad = None
        with Allocations(z.nbytes // 2) as seen:
            sparse_cross_entropy(z, targets).backward()
        return seen.count

    monkeypatch.setattr(losses, "PART_ELEMENTS", n * v // 8)
    assert large_tensors() == 1, "the gradient"
    monkeypatch.setattr(losses, "PART_ELEMENTS", n * v)
    assert large_tensors() >= 2, "what is not done in parts is seen"


class Allocations(TorchDispatchMode):
    """Counts the tensors of at least so many bytes that operations make anew."""

    def __init__(self, nbytes: int) -> None:
        super().__init__()
        self.nbytes, self.count = nbytes, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for t in tree_leaves(result):
            if isinstance(t, Tensor) and t.untyped_storage().data_ptr() not in given:
                self.count += t.untyped_storage().nbytes() >= self.nbytes
        return result
