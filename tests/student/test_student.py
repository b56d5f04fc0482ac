"""A model made ready for a store's head: hidden states in training, logits in evaluation, one function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.targets.errors import ConfigError
from student.config import LossConfig
from student.data import TargetReader
from student.events import Step
from student.losses import LinearLogits, distillation_loss, tempered_kl
from student.student import Student, restore
from student.train import train
from tests.student.runs import LM, configured


class Capped(nn.Module):
    """A language model that knows the last token alone, with Gemma's cap and Cohere's scale."""

    logit_scale, logit_softcap = 0.5, 3.0

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = nn.Embedding(classes, 8)
        self.head = nn.Linear(8, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        z = self.head(self.features(tokens)) * self.logit_scale
        return self.logit_softcap * torch.tanh(z / self.logit_softcap)


@pytest.mark.parametrize(
    "model",
    [
        LM,
        {**LM, "tie_embeddings": False},
        {"kind": "torch", "factory": f"{__name__}:Capped", "arguments": {"classes": 23}},
    ],
    ids=["tied", "untied", "capped"],
)
def test_in_training_a_language_model_hands_over_hidden_states_with_the_same_gradient(
    model: Any, token_store: Any, tmp_path: Path
) -> None:
    url = token_store()
    reader = TargetReader(url, split="all", batch_rows=100)
    (batch,) = reader.epoch(0)
    student = Student(configured(url, tmp_path, model=model), reader.spec)
    targets, labels = batch.targets["logits"], batch.labels("logits")
    found = []
    for whole in (False, True):
        logits = batch.pick(student.model(batch.inputs["tokens"]), "logits") if whole else student(batch)
        assert isinstance(logits, LinearLogits) is not whole
        loss = distillation_loss(LossConfig(hard_weight=0.3), logits, targets, labels)
        student.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        found.append([loss.detach(), *(p.grad.clone() for p in student.parameters() if p.grad is not None)])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)
    assert len(found[0]) == 1 + sum(1 for _ in student.parameters())
    student.eval()
    torch.testing.assert_close(student(batch), logits)


@pytest.mark.parametrize(
    "loss",
    [
        {"kind": "reverse_kl", "weighting": "uncertainty"},
        {"kind": "skew_kl", "skew": 0.2, "hard_weight": 0.5, "label_smoothing": 0.1},
    ],
    ids=lambda loss: loss["kind"],
)
def test_a_run_minimises_the_divergence_that_it_is_told(loss: Any, token_store: Any, tmp_path: Path) -> None:
    config = configured(token_store(), tmp_path / "run", loss=loss, steps=30, warmup_steps=0)
    first, *_, last = [event for event in train(config) if isinstance(event, Step)]
    assert last.loss < 0.9 * first.loss


def test_a_run_goes_through_its_schedule_of_temperatures(image_store: Any, tmp_path: Path) -> None:
    url = image_store([24])
    loss = {"kind": "tempered_kl", "temperature": 4, "final_temperature": 2}
    model = {"kind": "mlp", "hidden": [8]}
    still = {"steps": 4, "batch_rows": 24, "learning_rate": 1e-12, "log_every": 1, "holdout": 0}
    config = configured(url, tmp_path / "run", model=model, loss=loss, **still)
    found = [event.loss for event in train(config) if isinstance(event, Step)]
    reader = TargetReader(url, split="all", batch_rows=24)
    student = restore(tmp_path / "run" / "checkpoints" / "last", reader.spec)
    (batch,) = reader.epoch(0)
    wanted = [
        tempered_kl(student(batch), batch.targets["logits"], t).item()  # type: ignore[arg-type]
        for t in (3.5, 3.0, 2.5, 2.0)
    ]
    assert found == pytest.approx(wanted, rel=1e-5)


def test_a_loss_of_each_class_probability_is_refused_for_targets_of_draws_alone(
    token_store: Any, tmp_path: Path
) -> None:
    url = token_store(codec="sampled")
    spec = TargetReader(url, split="all").spec
    with pytest.raises(ConfigError, match="reverse_kl compares each class's own probability"):
        Student(configured(url, tmp_path, model=LM, loss={"kind": "reverse_kl"}), spec)
    Student(configured(url, tmp_path, model=LM, loss={"kind": "sparse_cross_entropy"}), spec)
