"""Logits that are never made whole: the same losses and gradients, in less memory, once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from student.losses import (
    LinearLogits,
    formula,
    hard_cross_entropy,
    linear,
    sparse_cross_entropy,
    tempered_kl,
)
from student.targets import TorchSparse
from tests.student.allocations import Allocations
from tests.student.formulas import LABELS, SPARSE, TEACHER, N, V, dense, logits
from tests.student.losses.cases import CASES, Case

D = 5
WEIGHTS = torch.rand(N, dtype=torch.float64, generator=torch.Generator().manual_seed(9))


def inputs(bias: bool = True, dtype: torch.dtype = torch.float64) -> list[Tensor | None]:
    """Hidden states, matrix and bias."""
    drawn = [logits(11, N, D, 1.0), logits(12, V, D, 1.0), logits(13, 1, V, 1.0)[0] if bias else None]
    return [None if x is None else x.to(dtype).requires_grad_() for x in drawn]


def made(hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float, cap: float | None) -> Tensor:
    """What `LinearLogits` stands for."""
    z = hidden @ weight.T if bias is None else hidden @ weight.T + bias
    return scale * z if cap is None else cap * torch.tanh(scale * z / cap)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formula, "PART_ELEMENTS", 3 * V)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_every_loss_and_its_gradients_are_those_of_the_made_logits(
    case: Case, reduction: str, small_parts: None
) -> None:
    ours, reference = inputs(), inputs()
    value = case.ours(LinearLogits(*ours, 0.7, 3.0), reduction=reduction, weights=WEIGHTS)  # type: ignore[arg-type]
    wanted = case.dense(made(*reference, 0.7, 3.0)) * WEIGHTS  # type: ignore[arg-type]
    if reduction == "mean":
        wanted = wanted.mean()
    torch.testing.assert_close(value, wanted, rtol=1e-6, atol=1e-9)
    upstream = torch.full_like(value, -1.7) * torch.arange(1, 1 + value.numel()).view_as(value)
    found = torch.autograd.grad(value, ours, upstream)  # type: ignore[arg-type]
    for gradient, exact in zip(found, torch.autograd.grad(wanted, reference, upstream), strict=True):  # type: ignore[arg-type]
        torch.testing.assert_close(gradient, exact, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (0.25, None), (1.0, 2.0)])
def test_gradients_pass_gradcheck(bias: bool, scale: float, cap: float | None, small_parts: None) -> None:
    def loss(*tensors: Tensor) -> Tensor:
        hidden, weight, *rest = tensors
        z = LinearLogits(hidden, weight, rest[0] if rest else None, scale, cap)
        return sparse_cross_entropy(z, SPARSE, reduction="none").square().sum()

    assert torch.autograd.gradcheck(loss, tuple(x for x in inputs(bias) if x is not None))


def test_only_what_is_asked_for_is_differentiated() -> None:
    hidden, weight, bias = inputs()
    for frozen in (hidden, weight, bias):
        assert frozen is not None
        frozen.requires_grad_(False)
        some = [x for x in (hidden, weight, bias) if x is not None and x.requires_grad]
        sparse_cross_entropy(LinearLogits(hidden, weight, bias), SPARSE).backward()
        assert frozen.grad is None
        assert all(x.grad is not None for x in some)
        frozen.requires_grad_()
        hidden.grad = weight.grad = bias.grad = None
    with torch.no_grad():
        value = sparse_cross_entropy(LinearLogits(hidden, weight, bias), SPARSE)
    assert not value.requires_grad


def test_accumulated_parts_have_the_gradient_of_the_whole() -> None:
    hidden, weight, _ = inputs()
    sparse_cross_entropy(LinearLogits(hidden, weight), SPARSE).backward()
    wanted = [hidden.grad, weight.grad]
    hidden.grad = weight.grad = None
    for a, b in ((0, 3), (3, 3), (3, N)):
        part = sparse_cross_entropy(LinearLogits(hidden[a:b], weight), SPARSE.slice(a, b), reduction="sum")
        (part / N).backward()
    torch.testing.assert_close([hidden.grad, weight.grad], wanted)


def test_a_sum_is_differentiated_once_and_says_so() -> None:
    hidden, weight, _ = inputs()
    value = sparse_cross_entropy(LinearLogits(hidden, weight), SPARSE)
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match='differentiated once; reduction="none" can be again'):
        value.backward()


def test_a_head_of_more_classes_than_the_targets_is_cut() -> None:
    hidden, weight, bias = inputs()
    cut = LinearLogits(hidden, weight, bias).first(V - 2)
    assert cut.shape == (N, V - 2)
    torch.testing.assert_close(cut.make(), made(hidden, weight, bias, 1.0, None)[:, : V - 2])
    hard_cross_entropy(cut, LABELS.clamp(max=V - 3)).backward()
    assert float(weight.grad[V - 2 :].abs().sum()) == 0
    with pytest.raises(ValueError, match=f"targets of {V} classes, logits of {V - 2}"):
        sparse_cross_entropy(cut, SPARSE)


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_under_autocast_products_are_bfloat16_and_losses_and_the_matrix_gradient_float32(
    reduction: Any, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "CLASSES_PER_PRODUCT", 4)
    hidden, weight, bias = inputs(dtype=torch.float32)
    layer = nn.Linear(D, V)
    layer.weight, layer.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
    with torch.autocast("cpu", torch.bfloat16):
        z = LinearLogits.of(hidden, layer)
        plain = layer(hidden)
    assert z.hidden.dtype == z.make().dtype == plain.dtype == torch.bfloat16
    value = sparse_cross_entropy(z, SPARSE, reduction=reduction)
    torch.testing.assert_close(
        value, sparse_cross_entropy(plain, SPARSE, reduction=reduction), rtol=0.02, atol=0.02
    )
    assert value.dtype == torch.float32
    value.sum().backward()
    exact = inputs()
    sparse_cross_entropy(made(*exact, 1.0, None), SPARSE, reduction="sum").backward()  # type: ignore[arg-type]
    for found, wanted in zip((hidden, layer.weight, layer.bias), exact, strict=True):
        assert found.grad.dtype == torch.float32
        assert float((found.grad - wanted.grad).norm() / wanted.grad.norm()) < 0.02


def test_logits_of_all_rows_never_exist() -> None:
    """No operation makes a tensor half as large as they would be, forward or backward."""
    n, v, d = 512, 2048, 16
    hidden, weight = torch.randn(n, d).requires_grad_(), torch.randn(v, d).requires_grad_()
    ids, weights = torch.randint(0, v, (n * 8,)), torch.full((n * 8,), 1 / 8)
    targets = TorchSparse(ids, weights, np.arange(n + 1) * 8, v, np.ones(n, dtype=int))
    whole = hidden.element_size() * n * v
    losses: list[Callable[[LinearLogits], Tensor]] = [
        lambda z: sparse_cross_entropy(z, targets),
        lambda z: sparse_cross_entropy(z, targets, reduction="none").sum(),
        lambda z: hard_cross_entropy(z, ids[:n]),
    ]
    for loss in losses:
        with pytest.MonkeyPatch.context() as patch, Allocations(whole // 2) as seen:
            patch.setattr(formula, "PART_ELEMENTS", n * v // 8)
            loss(LinearLogits(hidden, weight)).backward()  # type: ignore[no-untyped-call]
        assert seen.count == 0
    with Allocations(whole // 2) as seen:
        hard_cross_entropy(LinearLogits(hidden, weight).make(), ids[:n])
    assert seen.count > 0, "logits that are made are seen"


def test_no_rows_give_nothing_and_gradients_of_zero() -> None:
    weight = torch.ones(V, D, requires_grad=True)
    value = tempered_kl(LinearLogits(torch.zeros(0, D), weight), dense(TEACHER[:0]), reduction="sum")
    value.backward()  # type: ignore[no-untyped-call]
    assert float(value.detach()) == float(weight.grad.abs().sum()) == 0
