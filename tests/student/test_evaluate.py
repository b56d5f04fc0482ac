"""What held-out rows say of a student: the numbers of its whole logits, which are not made."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from pipeline.targets.errors import ConfigError
from student.config import LossConfig
from student.data import TargetReader
from student.distributed import World
from student.evaluate import evaluate
from student.losses import distillation_loss, formula, hard_cross_entropy
from student.student import Student
from tests.student.allocations import Allocations
from tests.student.runs import LM, configured

CAPPED = {"kind": "torch", "factory": "tests.student.test_student:Capped", "arguments": {"classes": 23}}
WORLD = World(0, 1, torch.device("cpu"))


def prepared(url: str, output: Path, batch_rows: int = 5, **changes: Any) -> tuple[Student, TargetReader]:
    reader = TargetReader(url, split="all", shuffle=False, batch_rows=batch_rows)
    return Student(configured(url, output, **changes), reader.spec), reader


@pytest.mark.parametrize(
    ("model", "codec", "loss", "precision"),
    [
        (LM, "threshold", LossConfig(hard_weight=0.3, label_smoothing=0.1), "float32"),
        (CAPPED, "threshold", LossConfig(kind="reverse_kl", weighting="uncertainty"), "float32"),
        (LM, "dense", LossConfig(kind="tempered_kl", temperature=2.0), "float32"),
        (CAPPED, "dense", LossConfig(kind="hard"), "bfloat16"),
    ],
    ids=["mixed", "weighted", "tempered", "hard"],
)
def test_a_score_is_that_of_the_whole_logits(
    token_store: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: Any,
    codec: str,
    loss: LossConfig,
    precision: Literal["float32", "bfloat16"],
) -> None:
    student, reader = prepared(token_store(codec=codec), tmp_path, model=model)
    sums = torch.zeros(3, dtype=torch.float64)
    student.eval()
    for batch in reader.epoch(0):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            logits = student(batch)
        assert isinstance(logits, torch.Tensor)
        labels = batch.labels("logits")
        assert labels is not None
        sums[0] += distillation_loss(loss, logits, batch.targets["logits"], labels, reduction="sum")
        sums[1] += hard_cross_entropy(logits, labels, reduction="sum")
        sums[2] += (logits.float().argmax(-1) == labels).sum()
    monkeypatch.setattr(formula, "PART_ELEMENTS", 3 * 23)
    score = evaluate(student, reader, loss, WORLD, None, precision)
    assert student.training
    found = torch.tensor([score.loss, score.hard_loss, score.accuracy], dtype=torch.float64)
    tolerance = 1e-5 if precision == "float32" else 1e-2
    torch.testing.assert_close(found, sums / score.targets, rtol=tolerance, atol=tolerance)


def test_the_logits_of_a_batch_never_exist(
    token_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No operation makes a tensor half as large as they would be."""
    classes = 1024
    student, reader = prepared(token_store(vocabulary=classes), tmp_path, batch_rows=26)
    (batch,) = reader.epoch(0)
    whole = student.count(batch) * classes * 4
    assert whole > 4 * sum(p.nbytes for p in student.parameters())
    monkeypatch.setattr(formula, "PART_ELEMENTS", whole // 4 // 8)
    with Allocations(whole // 2) as seen:
        evaluate(student, reader, LossConfig(hard_weight=0.5), WORLD, None, "float32")
    assert seen.count == 0
    with Allocations(whole // 2) as seen, torch.no_grad():
        student.eval()(batch)
    assert seen.count > 0, "logits that are made are seen"


def test_held_out_rows_without_a_target_are_refused(token_store: Any, tmp_path: Path) -> None:
    student, reader = prepared(token_store(lengths=(1, 1)), tmp_path)
    with pytest.raises(ConfigError, match=r"holdout: .* have no target of 'logits'"):
        evaluate(student, reader, LossConfig(), WORLD, None, "float32")
