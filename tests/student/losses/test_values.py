"""Values and gradients of every loss against dense float64 formulas written here from scratch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from student.losses import formula, sparse_cross_entropy
from student.targets import TorchSparse
from tests.student.allocations import Allocations
from tests.student.formulas import SPARSE, N, V, logits
from tests.student.losses.cases import CASES, Case


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.mark.parametrize("part", [3 * V, formula.PART_ELEMENTS])
def test_value_and_gradient_are_those_of_the_dense_formula(
    case: Case, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formula, "PART_ELEMENTS", part)
    ours, reference = case.ours, case.dense
    z = logits(1).requires_grad_()
    weights = torch.rand(N, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    value = ours(z, reduction="none")
    wanted = reference(z)
    torch.testing.assert_close(value, wanted, rtol=1e-6, atol=1e-9)
    (gradient,) = torch.autograd.grad((value * weights).sum(), z)
    (wanted_gradient,) = torch.autograd.grad((wanted * weights).sum(), z)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-6, atol=1e-9)


def test_gradients_pass_gradcheck(case: Case) -> None:
    ours = case.ours
    assert torch.autograd.gradcheck(ours, (logits(3).requires_grad_(),))


def test_the_mean_is_over_targets_and_the_sum_is_their_sum(case: Case) -> None:
    ours = case.ours
    each = ours(logits(4), reduction="none")
    assert each.shape == (N,)
    torch.testing.assert_close(ours(logits(4)), each.mean())
    torch.testing.assert_close(ours(logits(4), reduction="sum"), each.sum())


def test_bfloat16_logits_are_worked_on_in_float32(case: Case) -> None:
    """The value is that of the rounded logits to float32's precision; the gradient is rounded once."""
    ours, reference = case.ours, case.dense
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
    targets = TorchSparse(
        torch.randint(0, v, (n * 8,)),
        torch.full((n * 8,), 1 / 8),
        np.arange(n + 1) * 8,
        v,
        np.ones(n, dtype=int),
    )

    def large_tensors(loss: Callable[[], Tensor]) -> int:
        z.grad = None
        with Allocations(z.nbytes // 2) as seen:
            loss().backward()  # type: ignore[no-untyped-call]
        return seen.count

    monkeypatch.setattr(formula, "PART_ELEMENTS", n * v // 8)
    assert large_tensors(lambda: sparse_cross_entropy(z, targets)) == 1, "the gradient"
    assert large_tensors(lambda: z.log_softmax(-1).mean()) >= 2, "what is not done in parts is seen"
