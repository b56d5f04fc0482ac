"""The budget that a replica finds for its batches: larger where that is faster, and never more than fits."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.batching import Item, Window
from pipeline.budget import fastest
from pipeline.inference import Inference
from pipeline.job import LabelJob
from pipeline.label import Labeller
from pipeline.prepare import prepare
from pipeline.targets.spec import Input
from pipeline.teachers.base import Batch, Output
from pipeline.views.base import View

INPUTS = (Input("x", "<f4", (2,)),)


class Clocked:
    """A teacher of two classes whose batch takes `overhead` and `each` for a view, and which holds `room`."""

    description: Mapping[str, Any] = {"kind": "clocked", "fingerprint": "0"}
    outputs: Mapping[str, Output] = {"logits": Output(2, "single")}

    def __init__(self, overhead: float, each: float, room: int = 10**6, poison: bool = False) -> None:
        self.overhead, self.each, self.room, self.poison = overhead, each, room, poison
        self.sizes: list[int] = []

    def __call__(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        self.sizes.append(len(batch))
        if len(batch) > self.room:
            raise torch.OutOfMemoryError("no room")
        if self.poison:
            raise ValueError("cannot be read")
        time.sleep(self.overhead + self.each * len(batch))
        return {"logits": torch.zeros(len(batch), 2)}


def window(views: int) -> Window:
    content = View({"x": np.zeros(2, dtype=np.float32)}, 1)
    return Window([Item(str(row), row, 0, 1, content) for row in range(views)], [], views)


def found(teacher: Clocked, views: int, budget: int) -> int:
    return fastest(Inference(lambda: teacher), window(views), INPUTS, budget)


def test_it_grows_as_long_as_that_is_faster() -> None:
    assert found(Clocked(0.02, 0.0), views=64, budget=4) == 64


def test_it_stays_where_a_larger_batch_gains_nothing() -> None:
    assert found(Clocked(0.0, 0.005), views=16, budget=4) == 4


def test_it_ends_before_memory_runs_out() -> None:
    teacher = Clocked(0.02, 0.0, room=16)
    assert found(teacher, views=64, budget=4) == 16


@pytest.mark.parametrize("views", [0, 3])
def test_without_views_enough_it_is_the_one_that_was_given(views: int) -> None:
    assert found(Clocked(0.001, 0.0), views=views, budget=4) == 4


def test_a_window_that_the_teacher_fails_on_changes_nothing() -> None:
    assert found(Clocked(0.001, 0.0, poison=True), views=64, budget=4) == 4


@pytest.mark.slow
def test_a_job_labels_the_same_with_a_budget_that_is_found(make_job: Any) -> None:
    stores = []
    for name, find in (("given", False), ("found", True)):
        job: LabelJob = make_job(store=name, label={"batching": {"budget": 64, "window": 4, "find": find}})
        store = prepare(job)
        labeller = Labeller(job)
        for unit in store.pending():
            labeller.label(unit)
        assert store.verify().problems == ()
        stores.append({commit.unit: commit.shard_sha256 for commit in store.commits()})
    assert stores[0] == stores[1]
