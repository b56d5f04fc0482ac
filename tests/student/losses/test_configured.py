"""Which loss a configuration asks for, how soft and hard are mixed, and what cannot be learned from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.targets.errors import ConfigError
from student.config import LossConfig
from student.losses import (
    cosine_distance,
    decoupled_kd,
    distillation_loss,
    feature_mse,
    hard_cross_entropy,
    logit_l2,
    sparse_cross_entropy,
    tempered_kl,
    topk_kl,
    two_teacher_loss,
)
from student.targets import TorchDense, TorchEmbedding, TorchSparse
from tests.student.formulas import COUNTS, LABELS, SPARSE, TEACHER, V, dense, logits, topk, topp
from tests.student.losses.cases import DIVERGENCES


@pytest.mark.parametrize("hard_weight", [0.0, 0.3, 1.0])
def test_soft_and_hard_are_mixed_by_weight(hard_weight: float) -> None:
    z = logits(1)
    for kind, targets, temperature in (
        ("tempered_kl", dense(TEACHER), 4.0),
        ("logit_l2", dense(TEACHER), 1.0),
        ("topk_kl", topk(TEACHER), 2.0),
        ("sparse_cross_entropy", SPARSE, 1.0),
        ("cosine_distance", TorchEmbedding(TEACHER), 1.0),
        ("feature_mse", TorchEmbedding(TEACHER), 1.0),
    ):
        config = LossConfig(kind=kind, temperature=temperature, hard_weight=hard_weight)
        parts: dict[str, Callable[[], Tensor]] = {
            "tempered_kl": lambda: tempered_kl(z, dense(TEACHER), 4.0),
            "logit_l2": lambda: logit_l2(z, dense(TEACHER)),
            "topk_kl": lambda: topk_kl(z, topk(TEACHER), 2.0),
            "sparse_cross_entropy": lambda: sparse_cross_entropy(z, SPARSE),
            "cosine_distance": lambda: cosine_distance(z, TorchEmbedding(TEACHER)),
            "feature_mse": lambda: feature_mse(z, TorchEmbedding(TEACHER)),
        }
        wanted = (1 - hard_weight) * parts[kind]() + hard_weight * hard_cross_entropy(z, LABELS)
        torch.testing.assert_close(distillation_loss(config, z, targets, LABELS), wanted)
    only = distillation_loss(LossConfig(kind="hard"), z, None, LABELS)
    torch.testing.assert_close(only, hard_cross_entropy(z, LABELS))


def test_auto_takes_the_loss_that_fits_the_targets() -> None:
    z, auto = logits(1), LossConfig()
    for targets, wanted in (
        (dense(TEACHER), tempered_kl(z, dense(TEACHER))),
        (topk(TEACHER), topk_kl(z, topk(TEACHER))),
        (SPARSE, sparse_cross_entropy(z, SPARSE)),
        (topp(TEACHER, COUNTS), topk_kl(z, topp(TEACHER, COUNTS))),
        (TorchEmbedding(TEACHER), cosine_distance(z, TorchEmbedding(TEACHER))),
    ):
        torch.testing.assert_close(distillation_loss(auto, z, targets, None), wanted)


@pytest.mark.parametrize("hard_weight", [0.0, 0.3])
@pytest.mark.parametrize("case", DIVERGENCES)
def test_every_divergence_is_configured_for_every_kind_of_distribution(case: str, hard_weight: float) -> None:
    name, _, beta = case.partition(" beta=")
    ours, _, _ = DIVERGENCES[case]
    z = logits(1)
    for targets, temperature in (
        (dense(TEACHER), 4.0),
        (topk(TEACHER), 2.0),
        (topp(TEACHER, COUNTS), 1.0),
        (SPARSE, 1.0),
    ):
        kind, loss = name, ours
        if name == "kl" and targets is SPARSE:
            continue
        if name == "kl":
            kind = "tempered_kl" if isinstance(targets, TorchDense) else "topk_kl"
            loss = tempered_kl if isinstance(targets, TorchDense) else topk_kl  # type: ignore[assignment]
        settings = {
            "kind": kind,
            "temperature": temperature,
            "hard_weight": hard_weight,
            "jsd_beta": beta or 0.5,
        }
        found = distillation_loss(LossConfig.model_validate(settings), z, targets, LABELS)
        wanted = (1 - hard_weight) * loss(z, targets, temperature) + hard_weight * hard_cross_entropy(
            z, LABELS
        )
        torch.testing.assert_close(found, wanted)


def test_labels_are_smoothed_and_decoupled_parts_weighted_as_configured() -> None:
    z = logits(1)
    config = LossConfig(
        kind="decoupled_kd", temperature=4, hard_weight=0.5, label_smoothing=0.1, decoupled_weights=(2, 3)
    )
    wanted = decoupled_kd(z, dense(TEACHER), LABELS, 4, 2, 3) + hard_cross_entropy(z, LABELS, smoothing=0.1)
    torch.testing.assert_close(distillation_loss(config, z, dense(TEACHER), LABELS), wanted / 2)
    config = LossConfig(hard_weight=0.5, label_smoothing=0.1)
    wanted = sparse_cross_entropy(z, SPARSE) + hard_cross_entropy(z, LABELS, smoothing=0.1)
    torch.testing.assert_close(distillation_loss(config, z, SPARSE, LABELS), wanted / 2)


def test_a_loss_that_does_not_fit_is_refused_with_what_would() -> None:
    z = logits(1)
    n = 100
    draws = TorchSparse(torch.zeros(n).long(), torch.ones(n), np.arange(n + 1), V, np.zeros(n))
    with pytest.raises(
        ConfigError, match="topk_kl cannot learn from sparse targets; use sparse_cross_entropy"
    ):
        distillation_loss(LossConfig(kind="topk_kl"), z, SPARSE, None)
    with pytest.raises(ConfigError, match="temperature must be 1 for sparse_cross_entropy"):
        distillation_loss(LossConfig(temperature=2), z, SPARSE, None)
    with pytest.raises(ConfigError, match=r"not stored at temperature 3 \(stored: 4, 2, 1\)"):
        distillation_loss(LossConfig(temperature=3), z, topk(TEACHER), None)
    with pytest.raises(ValueError, match="not stored at temperature 3"):
        topk_kl(z, topk(TEACHER), 3.0)
    with pytest.raises(ConfigError, match=r"not stored at temperature 5 \(stored: 4, 2, 1, and between\)"):
        distillation_loss(LossConfig(temperature=5), z, topk(TEACHER, slopes=True), None)
    with pytest.raises(
        ConfigError, match="cannot learn from embedding targets; use cosine_distance, feature_mse,"
    ):
        distillation_loss(LossConfig(kind="logit_l2"), z, TorchEmbedding(TEACHER), None)
    with pytest.raises(ConfigError, match="temperature must be 1 for cosine_distance"):
        distillation_loss(LossConfig(temperature=2), z, TorchEmbedding(TEACHER), None)
    with pytest.raises(ConfigError, match="label"):
        distillation_loss(LossConfig(hard_weight=0.5), z, SPARSE, None)
    with pytest.raises(ConfigError, match='"hard"'):
        distillation_loss(LossConfig(), z, None, LABELS)
    for kind in ("decoupled_kd", "annealed_logit_l2"):
        with pytest.raises(ConfigError, match="label"):
            distillation_loss(LossConfig(kind=kind), z, dense(TEACHER), None)
    with pytest.raises(ConfigError, match=r"final_temperature: .* not stored at temperature 3"):
        distillation_loss(LossConfig(temperature=2, final_temperature=4), z, topk(TEACHER), None)
    with pytest.raises(ConfigError, match="reverse_kl: targets of draws alone"):
        distillation_loss(LossConfig(kind="reverse_kl"), logits(1, n), draws, None)
    mixed = LossConfig(kind="seed_affinity", hard_weight=0.5)
    with pytest.raises(ConfigError, match="hard_weight must be 0 for seed_affinity"):
        distillation_loss(mixed, z, TorchEmbedding(TEACHER), LABELS)
    told = TorchEmbedding(TEACHER)
    with pytest.raises(ConfigError, match="weighting must be uniform for embeddings"):
        distillation_loss(LossConfig(weighting="uncertainty"), z, told, None)
    with pytest.raises(ConfigError, match="similarity_preserving compares a batch's vectors, and has one"):
        two_teacher_loss(LossConfig(kind="similarity_preserving"), z, told, told, None)
