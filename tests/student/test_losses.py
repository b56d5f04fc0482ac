"""Values and gradients of every loss against dense float64 formulas written here from scratch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.targets.codecs import Embedding, Sampled, Threshold, TopK, TopP
from pipeline.targets.decoded import EmbeddingTargets, SparseTargets
from pipeline.targets.errors import ConfigError
from student import losses
from student.config import LossConfig
from student.losses import (
    cosine_distance,
    distillation_loss,
    feature_mse,
    hard_cross_entropy,
    logit_l2,
    sparse_cross_entropy,
    tempered_cross_entropy,
    tempered_kl,
    topk_kl,
)
from student.targets import TorchDense, TorchEmbedding, TorchSparse, TorchTopK, TorchTopP, to_torch

N, V, K = 7, 11, 4
BETAS = (0.25, 0.5, 1.0)


def logits(seed: int, n: int = N, v: int = V, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, v, dtype=torch.float64, generator=generator) * scale


def dense(z: Tensor) -> TorchDense:
    return TorchDense(z)


def topk(z: Tensor, k: int = K, betas: tuple[float, ...] = BETAS, slopes: bool = False) -> TorchTopK:
    """In float64, unlike a store's, so that gradients can be checked to many digits."""
    log_p = z.log_softmax(-1)
    values, ids = log_p.topk(k)
    rest = log_p.scatter(-1, ids, -math.inf)
    tail = torch.stack([(beta * rest).logsumexp(-1) for beta in betas], dim=-1)
    tilted = torch.stack([(beta * rest).softmax(-1).nan_to_num() for beta in betas], dim=-1)
    slope = (tilted * torch.where(rest > -math.inf, rest, 0)[..., None]).sum(-2) if slopes else None
    return TorchTopK(ids, values, betas, tail, z.shape[-1], slope)


def topp(z: Tensor, counts: list[int], betas: tuple[float, ...] = BETAS) -> TorchTopP:
    """The likeliest `counts[n]` classes of target n, in float64."""
    parts = [topk(row[None], k, betas) for row, k in zip(z, counts, strict=True)]
    return TorchTopP(
        torch.cat([part.ids[0] for part in parts]),
        torch.cat([part.log_probs[0] for part in parts]),
        torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)),
        np.concatenate([[0], np.cumsum(counts)]),
        betas,
        torch.cat([part.tail_log_mass for part in parts]),
        z.shape[-1],
    )


def sparse(z: Tensor, threshold: float = 0.05, seed: int = 0) -> TorchSparse:
    codec = Threshold(threshold=threshold)
    draws = np.random.default_rng(seed).random((len(z), codec.draws))
    targets = codec.decode(codec.encode(z.numpy(), draws), z.shape[-1])
    decoded = to_torch(targets)
    assert isinstance(decoded, TorchSparse)
    return decoded


def densified(targets: TorchSparse) -> Tensor:
    p = torch.zeros(len(targets), targets.size, dtype=torch.float64)
    return p.index_put((targets.rows, targets.ids), targets.weights.double(), accumulate=True)


TEACHER = logits(0)
LABELS = torch.randint(0, V, (N,), generator=torch.Generator().manual_seed(5))
SPARSE = sparse(TEACHER)
COUNTS = [1, 4, 2, V, 3, 1, 6]
"""Classes of each target that top-p keeps: all of one."""


def reference_kl(z: Tensor, t: float) -> Tensor:
    """Written with probabilities, not with the library's log-space formulas."""
    p, q = (TEACHER / t).softmax(-1), (z / t).softmax(-1)
    return t * t * (p * (p / q).log()).sum(-1)


def reference_bucketed(z: Tensor, t: float, counts: list[int]) -> Tensor:
    """The likeliest `counts[n]` classes of target n, and the others as one."""
    p, q = (TEACHER / t).softmax(-1), (z / t).softmax(-1)
    losses = []
    for n, k in enumerate(counts):
        order = TEACHER[n].argsort(descending=True)
        head, tail = order[:k], order[k:]
        loss = (p[n, head] * (p[n, head] / q[n, head]).log()).sum()
        if len(tail):
            loss = loss + p[n, tail].sum() * (p[n, tail].sum() / q[n, tail].sum()).log()
        losses.append(t * t * loss)
    return torch.stack(losses)


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


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10**6), shift=st.floats(-50, 50), t=st.sampled_from([1.0, 2.0, 4.0]))
def test_divergences_are_not_negative_vanish_at_the_teacher_and_ignore_a_shift(
    seed: int, shift: float, t: float
) -> None:
    teacher, student = logits(seed, 3), logits(seed + 1, 3)
    for loss, targets in ((tempered_kl, dense(teacher)), (topk_kl, topk(teacher))):
        kl: Any = loss
        assert bool((kl(student, targets, t, reduction="none") >= -1e-12).all())
        torch.testing.assert_close(kl(teacher, targets, t), torch.zeros((), dtype=torch.float64))
        torch.testing.assert_close(kl(student + shift, targets, t), kl(student, targets, t))


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10**6), k=st.integers(1, V), t=st.sampled_from([1.0, 2.0, 4.0]))
def test_topk_kl_bounds_the_full_kl_from_below_and_reaches_it_with_all_classes(
    seed: int, k: int, t: float
) -> None:
    teacher, student = logits(seed, 3), logits(seed + 1, 3)
    full = tempered_kl(student, dense(teacher), t, reduction="none")
    bucketed = topk_kl(student, topk(teacher, k), t, reduction="none")
    assert bool((bucketed <= full + 1e-9).all())
    if k == V:
        torch.testing.assert_close(bucketed, full)


def test_topk_kl_is_the_full_kl_when_the_tails_have_the_same_shape() -> None:
    targets = topk(TEACHER)
    student = TEACHER.clone()
    student.scatter_add_(-1, targets.ids, logits(8, N, K))  # only head logits differ
    torch.testing.assert_close(topk_kl(student, targets), tempered_kl(student, dense(TEACHER)))


def test_topk_targets_teach_the_tails_mass() -> None:
    """Renormalising over k would leave the other logits without a gradient."""
    z = logits(9).requires_grad_()
    targets = topk(TEACHER)
    topk_kl(z, targets).backward()
    assert z.grad is not None
    outside = z.grad.scatter(-1, targets.ids, 0.0)
    assert float(outside.abs().sum()) > 1e-3
    torch.testing.assert_close(z.grad.sum(-1), torch.zeros(N, dtype=torch.float64), atol=1e-12, rtol=0)


def test_the_codecs_topk_gives_the_same_loss_to_its_precision() -> None:
    codec = TopK(k=K, betas=BETAS, dtype="float32")
    stored = to_torch(codec.decode(codec.encode(TEACHER.numpy(), np.zeros((N, 0))), V))
    assert isinstance(stored, TorchTopK)
    for t in (1.0, 2.0, 4.0):
        torch.testing.assert_close(
            topk_kl(logits(1), stored, t), topk_kl(logits(1), topk(TEACHER), t), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("t", [1.0, 1.5, 2.7, 4.0])
def test_between_stored_temperatures_the_loss_is_near_the_one_with_the_tail_measured_there(t: float) -> None:
    z = logits(1)
    measured = topk_kl(z, topk(TEACHER, betas=(1 / t,)), t, reduction="none")
    between = topk(TEACHER, betas=(0.2, 0.6, 1.0), slopes=True)
    torch.testing.assert_close(topk_kl(z, between, t, reduction="none"), measured, rtol=1e-2, atol=1e-3)


def test_the_codecs_topp_gives_the_loss_of_its_classes() -> None:
    codec = TopP(p=0.8, k=6, betas=(0.2, 0.6, 1.0), dtype="float32", slopes=True)
    stored = to_torch(codec.decode(codec.encode(TEACHER.numpy(), np.zeros((N, 0))), V))
    assert isinstance(stored, TorchTopP)
    counts = np.diff(stored.bounds).tolist()
    assert len(set(counts)) > 1
    wanted = reference_bucketed(logits(1), 1.0, counts)
    torch.testing.assert_close(topk_kl(logits(1), stored, reduction="none"), wanted, rtol=1e-4, atol=1e-5)
    topk_kl(logits(1), stored, 3.0)
    assert len(stored.slice(2, 5)) == 3


def test_random_sampling_is_learned_from_as_any_sparse_estimate() -> None:
    codec = Sampled(40)
    encoded = codec.encode(TEACHER.numpy(), np.random.default_rng(0).random((N, 40)))
    targets = to_torch(codec.decode(encoded, V))
    assert isinstance(targets, TorchSparse)
    wanted = -(densified(targets) * logits(1).log_softmax(-1)).sum(-1)
    torch.testing.assert_close(
        sparse_cross_entropy(logits(1), targets, reduction="none"), wanted, rtol=1e-6, atol=1e-6
    )


def test_embeddings_are_compared_as_they_were_stored() -> None:
    vectors = TEACHER.float().numpy()
    codec = Embedding("float32")
    stored = to_torch(codec.decode(codec.encode(vectors, np.zeros((N, 0))), V))
    assert isinstance(stored, TorchEmbedding)
    zero = torch.zeros((), dtype=torch.float32)
    for loss in (cosine_distance, feature_mse):
        torch.testing.assert_close(loss(TEACHER.float(), stored), zero, atol=1e-6, rtol=0)
        assert len(loss(TEACHER[2:4].float(), stored.slice(2, 4), reduction="none")) == 2
    torch.testing.assert_close(cosine_distance(-3 * TEACHER.float(), stored), zero + 2)


def test_a_vector_of_zeros_gives_a_finite_loss_and_gradient() -> None:
    targets = to_torch(EmbeddingTargets(np.zeros((2, V), dtype=np.float32)))
    assert isinstance(targets, TorchEmbedding)
    for start in (torch.zeros(2, V), torch.ones(2, V)):
        g = start.requires_grad_()
        loss = cosine_distance(g, targets)
        loss.backward()
        assert float(loss.detach()) == 1.0
        assert g.grad is not None
        assert bool(g.grad.isfinite().all())


def test_classes_that_the_teacher_excludes_cost_nothing() -> None:
    teacher = TEACHER.clone()
    teacher[:, -3:] = -math.inf
    p, z = teacher.softmax(-1), logits(1).requires_grad_()
    value = tempered_kl(z, dense(teacher))
    wanted = torch.special.xlogy(p, p).sum(-1) - (p * z.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(value, wanted.mean())
    few = topk_kl(z, topk(teacher, V - 3))  # the tail has no mass at all
    torch.testing.assert_close(few, wanted.mean())
    for loss in (value, few, tempered_cross_entropy(z, dense(teacher))):
        (gradient,) = torch.autograd.grad(loss, z)
        torch.testing.assert_close(gradient, (z.softmax(-1) - p) / N)


def test_the_sparse_gradient_is_q_minus_p_hat_and_repeated_ids_add_up() -> None:
    targets = to_torch(
        SparseTargets(
            ids=np.array([2, 5, 5, 5, 0]),
            weights=np.array([0.4, 0.2, 0.2, 0.2, 1.0], dtype=np.float32),
            offsets=np.array([0, 4, 5]),
            head_counts=np.array([1, 1]),
            size=V,
        )
    )
    assert isinstance(targets, TorchSparse)
    z = logits(1, 2).requires_grad_()
    sparse_cross_entropy(z, targets, reduction="sum").backward()
    p = torch.zeros(2, V, dtype=torch.float64)
    p[0, 2], p[0, 5], p[1, 0] = 0.4, 0.6, 1.0
    torch.testing.assert_close(z.grad, z.detach().softmax(-1) - p, atol=1e-7, rtol=1e-6)


def test_sparse_cross_entropy_is_unbiased_in_value_and_gradient() -> None:
    """Over R independent encodings the mean is within 5 standard errors of the dense value in each of the
    V gradient coordinates and the value: 12 two-sided tests, error level below 12 x 6e-7 < 1e-5.
    """
    repeats = 4000
    teacher, student = logits(20, 1), logits(21, 1)
    codec = Threshold(threshold=0.2)
    draws = np.random.default_rng(3).random((repeats, codec.draws))
    encoded = codec.encode(teacher.expand(repeats, V).numpy(), draws)
    targets = to_torch(codec.decode(encoded, V))
    assert isinstance(targets, TorchSparse)
    z = student.expand(repeats, V).clone().requires_grad_()
    values = sparse_cross_entropy(z, targets, reduction="none")
    values.sum().backward()
    assert z.grad is not None
    samples = torch.cat([values.detach()[:, None], z.grad], dim=-1)
    p, q = teacher.softmax(-1)[0], student.softmax(-1)[0]
    wanted = torch.cat([-(p * q.log()).sum()[None], q - p])
    error = samples.std(0) / math.sqrt(repeats)
    assert bool(((samples.mean(0) - wanted).abs() <= 5 * error + 1e-7).all())


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


def test_a_loss_that_does_not_fit_is_refused_with_what_would() -> None:
    z = logits(1)
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
    with pytest.raises(ConfigError, match="cannot learn from embedding targets; use cosine_distance or"):
        distillation_loss(LossConfig(kind="logit_l2"), z, TorchEmbedding(TEACHER), None)
    with pytest.raises(ConfigError, match="temperature must be 1 for cosine_distance"):
        distillation_loss(LossConfig(temperature=2), z, TorchEmbedding(TEACHER), None)
    with pytest.raises(ConfigError, match="label"):
        distillation_loss(LossConfig(hard_weight=0.5), z, SPARSE, None)
    with pytest.raises(ConfigError, match='"hard"'):
        distillation_loss(LossConfig(), z, None, LABELS)


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
