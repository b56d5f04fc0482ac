"""What becomes of batches that the teacher fails on."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.batching import Item, Part, Window, batches, collate
from pipeline.inference import Answer, Inference
from pipeline.targets.errors import TeacherError
from pipeline.targets.spec import Input
from pipeline.targets.unit import Quarantined
from pipeline.teachers.base import Batch, Output
from pipeline.views.base import View

INPUTS = (Input("tokens", "<u2", (None,)),)
SIZE = 5


class Fussy:
    """Logits that are the token itself; fails on token 9, on more than `memory` tokens, and when broken."""

    def __init__(self, memory: int = 10**9, extra: int = 0) -> None:
        self.outputs = {"logits": Output(SIZE, "next_token")}
        self.description: dict[str, Any] = {"kind": "fussy", "fingerprint": ""}
        self.memory, self.extra, self.broken = memory, extra, False
        self.seen: list[int] = []

    def __call__(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        tokens = batch.inputs["tokens"]
        self.seen.append(tokens.size)
        if self.broken:
            raise RuntimeError("CUDA error: device-side assert triggered")
        if tokens.size > self.memory:
            raise torch.OutOfMemoryError("out of memory")
        if (tokens == 9).any():
            raise RuntimeError("9 is too much")
        logits = torch.from_numpy(tokens.astype(np.float32))[..., None].repeat(1, 1, SIZE + self.extra)
        return {"logits": logits}


def items_of(lengths: list[int], poisoned: set[int] = frozenset()) -> list[Item]:  # type: ignore[assignment]
    return [
        Item(str(i), i, 0, 1, View({"tokens": np.full(n, 9 if i in poisoned else i % 9, "<u2")}, n))
        for i, n in enumerate(lengths)
    ]


def part_of(lengths: list[int], poisoned: set[int] = frozenset()) -> Part:  # type: ignore[assignment]
    return collate(items_of(lengths, poisoned), np.arange(len(lengths)), INPUTS)


@settings(max_examples=80)
@given(
    lengths=st.lists(st.integers(2, 12), min_size=1, max_size=40),
    poisoned=st.sets(st.integers(0, 39), max_size=5),
    memory=st.integers(12, 200),
    budget=st.integers(2, 300),
)
def test_every_view_is_answered_or_quarantined_exactly_once(
    lengths: list[int], poisoned: set[int], memory: int, budget: int
) -> None:
    window = Window(items_of(lengths, poisoned))
    inference = Inference(lambda: Fussy(memory))
    # A view that the teacher took, so that it is known to work.
    (_,) = inference(part_of([2]))
    answered: list[int] = []
    failed: list[int] = []
    for part in batches(window, INPUTS, budget):
        assert part.size <= budget or len(part) == 1
        for outcome in inference(part):
            if isinstance(outcome, Quarantined):
                assert outcome.code == "teacher_failed"
                assert "9 is too much" in outcome.reason
                failed.append(outcome.row)
                continue
            places = outcome.part.positions.tolist()
            answered += places
            for i, place in enumerate(places):
                assert outcome.part.items[i] is window.items[place]
                valid = outcome.logits["logits"].whole()[i, : lengths[place]]
                assert bool((valid == place % 9).all())
    bad = {i for i in poisoned if i < len(lengths)}
    assert sorted(failed) == sorted(bad)
    assert sorted(answered) == sorted(set(range(len(lengths))) - bad)


def test_memory_that_ran_out_once_is_not_asked_for_again() -> None:
    teacher = Fussy(memory=40)
    inference = Inference(lambda: teacher)
    assert len(list(inference(part_of([10] * 16)))) == 4
    assert teacher.seen == [160, 80, 40, 40, 40, 40]
    teacher.seen.clear()
    assert len(list(inference(part_of([10] * 16)))) == 4
    assert max(teacher.seen) == 40


def test_padding_of_longer_views_is_cut_with_them() -> None:
    part = part_of([12, 3, 2, 2]).take(slice(1, None))
    assert part.batch.inputs["tokens"].shape == (3, 3)
    assert part.batch.lengths.tolist() == [3, 2, 2]
    assert part.size == 9


def test_a_teacher_that_stopped_working_is_told_from_a_bad_view() -> None:
    teacher = Fussy()
    inference = Inference(lambda: teacher)
    list(inference(part_of([4, 4])))
    teacher.broken = True
    with pytest.raises(TeacherError, match="device-side assert"):
        list(inference(part_of([4, 4])))


def test_a_head_of_another_shape_than_declared_is_the_teachers_fault() -> None:
    with pytest.raises(TeacherError, match=r"\(2, 4, 6\).*must be \(2, 4, 5\)"):
        list(Inference(lambda: Fussy(extra=1))(part_of([4, 3])))


def test_an_answer_knows_how_long_it_took() -> None:
    began = time.perf_counter()
    (answer,) = Inference(Fussy)(part_of([4, 3]))
    assert isinstance(answer, Answer)
    assert 0 < answer.seconds() < time.perf_counter() - began
