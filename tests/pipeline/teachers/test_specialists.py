"""A generalist and specialists as one teacher: the fit, who is heard, and what does not fit together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from pipeline.targets.errors import UserError
from pipeline.teachers import AnyTeacher, Fake, Specialists
from pipeline.teachers.base import Output
from pipeline.teachers.specialists import combine
from tests.pipeline.teachers.tiny import array_batch

V = 9


def divergence(
    q: torch.Tensor, generalist: torch.Tensor, heard: list[tuple[torch.Tensor, list[int]]]
) -> torch.Tensor:
    """KL(p_g ‖ q) + Σ KL(p_m ‖ q) as the paper writes it, of one view."""

    def kl(p: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return (p * (p.log() - other.log())).sum()

    total = kl(generalist.softmax(0), q)
    for logits, known in heard:
        others = [c for c in range(len(q)) if c not in known]
        total = total + kl(logits.softmax(0), torch.cat([q[known], q[others].sum()[None]]))
    return total


@pytest.mark.slow
@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 3), likeliest=st.integers(1, 3))
def test_the_combination_is_the_papers_minimum(seed: int, count: int, likeliest: int) -> None:
    rng = np.random.default_rng(seed)
    generalist = torch.from_numpy(rng.normal(0, 2, (4, V)))
    classes = [rng.choice(V, size=int(rng.integers(2, 5)), replace=False).tolist() for _ in range(count)]
    said = [torch.from_numpy(rng.normal(0, 2, (4, len(known) + 1))) for known in classes]
    found = combine(generalist, said, classes, likeliest)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(4, dtype=torch.float64))
    for view in range(4):
        top = generalist[view].topk(likeliest).indices.tolist()
        heard = [
            (logits[view], known)
            for logits, known in zip(said, classes, strict=True)
            if set(top) & set(known)
        ]
        z = generalist[view].clone().requires_grad_()
        descent = torch.optim.LBFGS(
            [z], max_iter=300, tolerance_grad=1e-12, tolerance_change=1e-14, line_search_fn="strong_wolfe"
        )

        def step(
            z: torch.Tensor = z,
            view: int = view,
            heard: list[tuple[torch.Tensor, list[int]]] = heard,
            descent: Any = descent,
        ) -> float:
            descent.zero_grad()
            loss = divergence(z.softmax(0), generalist[view], heard)
            loss.backward()  # type: ignore[no-untyped-call]
            return float(loss.detach())

        descent.step(step)
        torch.testing.assert_close(found[view].exp(), z.detach().softmax(0), rtol=1e-4, atol=1e-6)


def test_a_view_that_no_specialist_knows_is_the_generalists_alone() -> None:
    generalist = torch.tensor([[5.0, 0, 0, 0], [0, 0, 0, 5]], dtype=torch.float64)
    found = combine(generalist, [torch.tensor([[0.0, 9, 0]] * 2, dtype=torch.float64)], [[2, 3]], 1)
    torch.testing.assert_close(found[0], generalist[0].log_softmax(0))
    assert float(found[1, 3]) > float(generalist[1].log_softmax(0)[3])


def job(**changes: Any) -> dict[str, Any]:
    said: dict[str, Any] = {
        "kind": "specialists",
        "generalist": {"kind": "fake", "size": V, "positions": "single"},
        "specialists": [
            {"teacher": {"kind": "fake", "size": 4, "positions": "single", "seed": 1}, "classes": [1, 4, 7]},
            {"teacher": {"kind": "fake", "size": 3, "positions": "single", "seed": 2}, "classes": [8, 0]},
        ],
        "likeliest": 2,
    }
    return said | changes


def load(said: dict[str, Any]) -> Any:
    adapter: TypeAdapter[Any] = TypeAdapter(AnyTeacher)
    return adapter.validate_python(said).load()


IMAGES = array_batch(np.arange(12, dtype=np.uint8).reshape(6, 2))


def test_each_specialist_has_a_head_of_its_own_beside_the_common_one() -> None:
    teacher = load(job())
    assert teacher.outputs == {
        "logits": Output(V, "single"),
        "generalist": Output(V, "single"),
        "specialist_0": Output(4, "single"),
        "specialist_1": Output(3, "single"),
    }
    found = teacher(IMAGES)
    generalist = Fake(size=V, positions="single").load()(IMAGES)["logits"]
    torch.testing.assert_close(found["generalist"], generalist)
    expected = combine(
        generalist.double(), [found[f"specialist_{i}"].double() for i in (0, 1)], [[1, 4, 7], [8, 0]], 2
    )
    torch.testing.assert_close(found["logits"].double(), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found["logits"], generalist.log_softmax(1), atol=0.01)
    alone = teacher(array_batch(IMAGES.inputs["pixels"][:1]))["logits"]
    torch.testing.assert_close(alone[0], found["logits"][0], rtol=0, atol=0)


def test_a_dustbin_is_raised_by_how_often_a_specialist_saw_its_classes() -> None:
    plain, said = load(job())(IMAGES), job()
    said["specialists"][0]["oversampled"] = 3.0
    raised = load(said)(IMAGES)
    difference = raised["specialist_0"] - plain["specialist_0"]
    torch.testing.assert_close(difference[:, -1], torch.full((6,), float(np.log(3.0))))
    assert not difference[:, :-1].any()


def test_what_is_not_finite_stays_so_for_its_view_alone() -> None:
    said = job()
    said["generalist"]["nan_on"] = 2
    found = load(said)(IMAGES)["logits"]
    assert found.isnan().any(dim=1).tolist() == [False, True, False, False, False, False]
    torch.testing.assert_close(found[2:], load(job())(IMAGES)["logits"][2:])


@pytest.mark.parametrize(
    ("place", "classes", "reason"),
    [
        (0, [1, 4], r"there should be 3: correct teacher\.specialists\.0\.classes"),
        (1, [8, 9], r"specialists\.1\.classes has a class that is none of .* 9"),
        (1, [8, 8], "stands there twice"),
    ],
)
def test_classes_that_do_not_fit_are_refused_by_their_place(
    place: int, classes: list[int], reason: str
) -> None:
    said = job()
    said["specialists"][place]["classes"] = classes
    with pytest.raises((UserError, ValidationError), match=reason):
        load(said)


def test_only_single_distributions_are_put_together() -> None:
    with pytest.raises(UserError, match='the generalist has no head "logits" with one distribution a view'):
        load(job(generalist={"kind": "fake", "size": V}))


def test_the_fingerprint_follows_every_member_and_setting() -> None:
    other, groups = job(), job()
    other["specialists"][0]["teacher"]["seed"] = 7
    groups["specialists"][0]["classes"] = [1, 4, 6]
    ways = [job(), job(likeliest=1), other, groups]
    assert len({load(way).description["fingerprint"] for way in ways}) == 4
    assert isinstance(TypeAdapter(AnyTeacher).validate_python(job()), Specialists)
