"""One student's steps: what they cost, and batches that teach nothing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from student import flops
from student.data import TargetReader
from student.distributed import World
from student.events import Step
from student.learner import Learner
from student.losses import LinearLogits
from student.train import train
from tests.student.runs import configured

ALONE = World(0, 1, torch.device("cpu"))


def test_the_operations_of_a_language_model_are_counted_without_its_logits_being_whole(
    token_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[N, V] logits of a large vocabulary may be all that a device has no room for."""
    url = token_store()
    (batch,) = TargetReader(url, split="all", batch_rows=100).epoch(0)
    learner = Learner(configured(url, tmp_path), batch.spec, ALONE)
    model: Any = learner.student.model
    with torch.no_grad(), flops.counter() as counted:
        model.features(batch.inputs["tokens"])
    monkeypatch.setattr(LinearLogits, "make", lambda logits: pytest.fail("logits were made whole"))
    learner.learn([batch])
    targets, width, classes = len(batch.row_index), 16, 23
    forward = counted.get_total_flops() / targets + 2 * width * classes
    assert learner.flops_per_target == pytest.approx(3 * forward)
    assert model.training


def test_a_batch_without_targets_teaches_nothing_and_does_no_harm(token_store: Any, tmp_path: Path) -> None:
    """As an imported store's rows of a single token are."""
    url = token_store([30], lengths=(1, 2))
    config = configured(url, tmp_path / "run", batch_rows=1, log_every=1, steps=20, holdout=0.5)
    steps = [event for event in train(config) if isinstance(event, Step)]
    without = [step for step in steps if step.targets_per_second == 0]
    assert 0 < len(without) < len(steps)
    assert {(step.loss, step.gradient_norm) for step in without} == {(0.0, 0.0)}
    assert all(math.isfinite(step.loss) and step.loss > 0 for step in steps if step not in without)
