"""What changes while a student learns: temperatures, annealing, and weights by its uncertainty."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from student.config import LossConfig
from student.losses import (
    LearnedTemperature,
    LinearLogits,
    adversarial_kl,
    annealed_logit_l2,
    distillation_loss,
    hard_cross_entropy,
    sparse_cross_entropy,
    tempered_kl,
    topk_kl,
    two_teacher_loss,
    uncertainty,
)
from student.targets import TorchEmbedding
from tests.student.formulas import LABELS, SPARSE, TEACHER, K, N, V, dense, logits, topk


def entropy_share(z: Tensor) -> Tensor:
    q = z.detach().softmax(-1)
    return -(q * q.log()).sum(-1) / math.log(V)


def test_uncertainty_is_the_entropys_share_of_the_largest() -> None:
    torch.testing.assert_close(uncertainty(logits(1)), entropy_share(logits(1)))
    extremes = torch.stack([torch.zeros(V), torch.eye(V)[0] * 1e4])
    torch.testing.assert_close(uncertainty(extremes), torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize("fused", [False, True])
def test_losses_are_weighted_by_uncertainty_which_is_not_differentiated(fused: bool) -> None:
    config = LossConfig(weighting="uncertainty", hard_weight=0.3)
    z = logits(1).requires_grad_()
    linear = LinearLogits(z, torch.eye(V, dtype=torch.float64)) if fused else z
    value = distillation_loss(config, linear, SPARSE, LABELS)
    soft, hard = (
        sparse_cross_entropy(z, SPARSE, reduction="none"),
        hard_cross_entropy(z, LABELS, reduction="none"),
    )
    wanted = (entropy_share(z) * (0.7 * soft + 0.3 * hard)).mean()
    torch.testing.assert_close(value, wanted)
    torch.testing.assert_close(torch.autograd.grad(value, z), torch.autograd.grad(wanted, z))


def test_of_two_teachers_the_small_one_weighs_what_the_student_is_unsure_of() -> None:
    z = logits(1).requires_grad_()
    small, large = dense(logits(2)), topk(TEACHER)
    value = two_teacher_loss(LossConfig(), z, small, large, None)
    w = entropy_share(z)
    wanted = (
        w * tempered_kl(z, small, reduction="none") + (1 - w) * topk_kl(z, large, reduction="none")
    ).mean()
    torch.testing.assert_close(value, wanted)
    torch.testing.assert_close(torch.autograd.grad(value, z), torch.autograd.grad(wanted, z))


def test_the_temperature_goes_evenly_from_one_end_to_the_other() -> None:
    config = LossConfig(temperature=4, final_temperature=1)
    assert [config.at(progress).temperature for progress in (0.0, 0.5, 1.0)] == [4, 2.5, 1]
    assert LossConfig(temperature=4).at(0.5).temperature == 4
    targets = topk(TEACHER, betas=(0.25, 0.5, 1.0), slopes=True)
    torch.testing.assert_close(
        distillation_loss(config.at(0.5), logits(1), targets, None), topk_kl(logits(1), targets, 2.5)
    )


def test_annealing_turns_the_teacher_up_and_then_to_the_labels() -> None:
    config = LossConfig(kind="annealed_logit_l2", annealing_temperature=5, annealing_share=0.5)
    z = logits(1)
    for progress, factor in ((0.0, 0.2), (0.25, 0.6), (0.5, 1.0)):
        torch.testing.assert_close(
            distillation_loss(config.at(progress), z, dense(TEACHER), LABELS),
            annealed_logit_l2(z, dense(TEACHER), factor),
        )
    late = distillation_loss(config.at(0.51), z, dense(TEACHER), LABELS)
    torch.testing.assert_close(late, hard_cross_entropy(z, LABELS))


def test_the_learned_temperature_is_differentiated_and_its_gradient_reversed() -> None:
    t = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    z = logits(1).requires_grad_()
    torch.testing.assert_close(adversarial_kl(z, dense(TEACHER), t), tempered_kl(z, dense(TEACHER), 3.0))
    assert torch.autograd.gradcheck(lambda x, s: adversarial_kl(x, dense(TEACHER), s), (z, t))
    each = torch.linspace(1, 5, N, dtype=torch.float64)
    wanted = [tempered_kl(z[n : n + 1], dense(TEACHER[n : n + 1]), float(each[n])) for n in range(N)]
    torch.testing.assert_close(adversarial_kl(z, dense(TEACHER), each, reduction="none"), torch.stack(wanted))

    learned = LearnedTemperature(warmup_steps=10)
    assert float(learned(0).detach()) == 11
    gradients = []
    for step in (0, 5, 10, 99):
        (gradient,) = torch.autograd.grad(learned(step), learned.theta)
        gradients.append(float(gradient))
    torch.testing.assert_close(gradients, [0.0, -2.5, -5.0, -5.0])
    before = adversarial_kl(logits(1), dense(TEACHER), learned(10))
    before.backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        learned.theta -= 0.01 * learned.theta.grad.sign()
        assert adversarial_kl(logits(1), dense(TEACHER), learned(10)) > before, "it makes it harder"


def test_losses_among_vectors_are_configured_too() -> None:
    targets = TorchEmbedding(TEACHER)
    for kind in (
        "smooth_l1",
        "relational_distance",
        "relational_angle",
        "similarity_preserving",
        "seed_affinity",
    ):
        value = distillation_loss(LossConfig(kind=kind), logits(1), targets, None, reduction="none")
        assert value.shape == (N,)
        linear = LinearLogits(logits(1, N, K), logits(2, V, K))
        torch.testing.assert_close(
            distillation_loss(LossConfig(kind=kind), linear, targets, None),
            distillation_loss(LossConfig(kind=kind), linear.make(), targets, None),
        )
