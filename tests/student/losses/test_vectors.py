"""Losses of embeddings against loops in float64: of each vector, of pairs and triples, and of affinities."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from student.losses import (
    Queue,
    clip_affinity,
    cosine_distance,
    feature_mse,
    relational_angle,
    relational_distance,
    seed_affinity,
    similarity_preserving,
    smooth_l1,
)
from student.targets import TorchEmbedding
from tests.student.formulas import TEACHER, N, V, logits

QUEUE = logits(30, 5)


def huber(x: Tensor) -> Tensor:
    return torch.where(x.abs() < 1, x * x / 2, x.abs() - 0.5)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b) / (a @ a).sqrt() / (b @ b).sqrt()


def pairs(x: Tensor) -> Tensor:
    """Distances [N, N] over the mean of those between different vectors."""
    found = [
        torch.stack([((a - b) ** 2).sum().sqrt() if a is not b else a.new_zeros(()) for b in rows])
        for rows in [list(x)]
        for a in rows
    ]
    distances = torch.stack(found)
    return distances / (distances.sum() / (len(x) * (len(x) - 1)))


def angles(x: Tensor) -> Tensor:
    """[N, N, N], of i and j seen from n."""
    n = len(x)
    zero = x.new_zeros(())
    found = [
        cosine(x[i] - x[k], x[j] - x[k]) if k not in (i, j) else zero
        for k, i, j in itertools.product(range(n), repeat=3)
    ]
    return torch.stack(found).view(n, n, n)


def similarities(x: Tensor) -> Tensor:
    gram = x @ x.T
    return gram / (gram**2).sum(-1, keepdim=True).sqrt()


def affinities(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Softmax over b of the scaled cosines, [N, len(b)]."""
    return torch.stack([torch.stack([cosine(x, y) for y in b]) for x in a]).mul(scale).softmax(-1)


def seed(g: Tensor, keys: Tensor) -> Tensor:
    p, q = affinities(TEACHER, keys, 1 / 0.01), affinities(g, keys, 1 / 0.2)
    return -(p * q.log()).sum(-1)


Case = tuple[Callable[..., Tensor], Callable[[Tensor], Tensor]]
CASES: dict[str, Case] = {
    "cosine_distance": (
        cosine_distance,
        lambda g: torch.stack([1 - cosine(a, b) for a, b in zip(g, TEACHER, strict=True)]),
    ),
    "feature_mse": (feature_mse, lambda g: ((g - TEACHER) ** 2).sum(-1) / V),
    "smooth_l1": (smooth_l1, lambda g: huber(g - TEACHER).sum(-1) / V),
    "smooth_l1 beta=0.5": (
        lambda g, e, **kw: smooth_l1(g, e, 0.5, **kw),
        lambda g: huber((g - TEACHER) / 0.5).sum(-1) * 0.5 / V,
    ),
    "relational_distance": (relational_distance, lambda g: huber(pairs(g) - pairs(TEACHER)).mean(-1)),
    "relational_angle": (relational_angle, lambda g: huber(angles(g) - angles(TEACHER)).mean((-1, -2))),
    "similarity_preserving": (
        similarity_preserving,
        lambda g: ((similarities(g) - similarities(TEACHER)) ** 2).mean(-1),
    ),
    "seed_affinity": (seed_affinity, lambda g: seed(g, TEACHER)),
    "seed_affinity with a queue": (
        lambda g, e, **kw: seed_affinity(g, e, QUEUE, **kw),
        lambda g: seed(g, torch.cat([TEACHER, QUEUE])),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_those_of_the_formula(name: str) -> None:
    ours, reference = CASES[name]
    g, targets = logits(1).requires_grad_(), TorchEmbedding(TEACHER)
    weights = torch.rand(N, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    value, wanted = ours(g, targets, weights=weights, reduction="sum"), (weights * reference(g)).sum()
    torch.testing.assert_close(value, wanted)
    torch.testing.assert_close(torch.autograd.grad(value, g), torch.autograd.grad(wanted, g))
    each = ours(g, targets, reduction="none")
    assert each.shape == (N,)
    torch.testing.assert_close(ours(g, targets), each.mean())
    assert torch.autograd.gradcheck(lambda x: ours(x, targets), (logits(3).requires_grad_(),))


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_vectors_are_compared_in_float32(name: str) -> None:
    ours, _ = CASES[name]
    rounded = logits(6).bfloat16()
    value = ours(rounded.requires_grad_(), TorchEmbedding(TEACHER.float()))
    assert value.dtype == torch.float32
    exact = ours(rounded.detach().double(), TorchEmbedding(TEACHER))
    torch.testing.assert_close(value.double(), exact, rtol=1e-4, atol=1e-5)
    value.backward()  # type: ignore[no-untyped-call]
    assert rounded.grad is not None
    assert rounded.grad.dtype == torch.bfloat16


def test_relational_losses_know_neither_rotation_nor_width_nor_the_place_of_equal_vectors() -> None:
    rotation = torch.linalg.qr(logits(4, V, V)).Q
    wider = torch.cat([TEACHER @ rotation, torch.zeros(N, 3, dtype=torch.float64)], dim=-1)
    targets = TorchEmbedding(TEACHER)
    zero = torch.zeros((), dtype=torch.float64)
    for loss in (relational_distance, relational_angle, similarity_preserving):
        torch.testing.assert_close(loss(3 * wider, targets), zero)  # type: ignore[operator]
        same = torch.ones(N, V, dtype=torch.float64).requires_grad_()
        loss(same, targets).backward()  # type: ignore[operator]
        assert same.grad is not None
        assert bool(same.grad.isfinite().all())


def test_clip_affinity_is_the_mean_of_both_ways_against_the_mean_of_the_teachers() -> None:
    u, v, s = (
        logits(1).requires_grad_(),
        logits(2).requires_grad_(),
        torch.tensor(5.0).double().requires_grad_(),
    )
    told = [(TEACHER, logits(7)), (logits(8, N, 4), logits(9, N, 4))]
    value = clip_affinity(u, v, [(TorchEmbedding(a), TorchEmbedding(b)) for a, b in told], s, 3.0)
    wanted = torch.zeros((), dtype=torch.float64)
    for a, b, turn in ((u, v, 1), (v, u, -1)):
        p = sum(affinities(*pair[::turn], 3.0) for pair in told) / 2
        q = affinities(a, b, 1.0).log().mul(s).softmax(-1)  # the softmax of a log is its argument's, scaled
        wanted = wanted + 0.5 * (p * (p / q).log()).sum(-1).mean()
    torch.testing.assert_close(value, wanted)
    torch.testing.assert_close(torch.autograd.grad(value, (u, v, s)), torch.autograd.grad(wanted, (u, v, s)))


def test_a_queue_keeps_the_last_vectors_through_a_checkpoint() -> None:
    queue = Queue(5, 2)
    assert queue.seen().shape == (0, 2)
    for start in (0, 3, 6):
        queue.add(TorchEmbedding(torch.arange(start, start + 3).float()[:, None].expand(3, 2)))
    again = Queue(5, 2)
    again.load_state_dict(queue.state_dict())
    again.add(TorchEmbedding(torch.full((1, 2), 9.0)))
    assert sorted(again.seen()[:, 0].tolist()) == [5, 6, 7, 8, 9]
    again.add(TorchEmbedding(torch.arange(20, 27).float()[:, None].expand(7, 2)))
    assert sorted(again.seen()[:, 1].tolist()) == [22, 23, 24, 25, 26]
