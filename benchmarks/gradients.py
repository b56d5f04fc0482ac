"""The gradient of one step of a real student: how far a codec's targets turn it from that of all logits.

Squared errors of single targets say little about a step: what is unbiased averages out over the step's
targets, and what is biased stays. So a small student that has learned a little from the tokens is asked for
the gradient of its loss, summed over all of a pilot's targets, in all of its weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from benchmarks.teachers import Material
from jobs.demo.settings import StudentSettings
from pipeline.pilot import Pilot
from pipeline.targets.codecs import Codec, Dense
from pipeline.targets.decoded import DenseTargets, Targets
from pipeline.targets.ragged import Ragged
from pipeline.targets.rows import Rows
from student.config import LossConfig, SmallLM
from student.losses import distillation_loss
from student.models import build
from student.targets import to_torch

STEPS, ROWS, LENGTH = 100, 4, 256
"""Of the student's lesson: steps, and windows and tokens of each."""


def beginner(material: Material, size: int) -> torch.nn.Module:
    """The demo's student after a few steps on tokens that the teacher has not seen. size: classes."""
    settings = StudentSettings()
    torch.manual_seed(0)
    model = build(SmallLM(layers=settings.layers, width=settings.width, heads=settings.heads), (None,), size)
    tokenizer = Tokenizer.from_file(str(material.tokenizer / "tokenizer.json"))
    text = "".join(path.read_text(encoding="utf-8") for path in material.unseen[-40:])[:4_000_000]
    tokens = torch.tensor(tokenizer.encode(text).ids)
    optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate)
    for _ in range(STEPS):
        starts = torch.randint(len(tokens) - LENGTH - 1, (ROWS, 1))
        windows = tokens[starts + torch.arange(LENGTH + 1)]
        loss = F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


class Turns:
    """How targets turn the gradient of a beginner's step over all of a pilot's targets."""

    def __init__(self, material: Material, pilot: Pilot) -> None:
        self._pilot, self._student = pilot, beginner(material, pilot.head.size)
        self._dense = pilot.rows(Dense("float32"))
        self._exact = self._gradient(self._dense)

    def of(self, codec: Codec) -> dict[str, float]:
        """Of its targets. step_angle: degrees between the gradient g and g*, that of all logits; step_error:
        |g - g*|² / |g*|².
        """
        return self._turn(self._gradient(self._pilot.rows(codec)))

    def of_function(self, encode: Callable[[torch.Tensor], Targets]) -> dict[str, float]:
        """Of what makes other targets of the teacher's logits, float32 [n, V]."""
        return self._turn(self._gradient(self._dense, encode=encode))

    def of_labels(self) -> dict[str, float]:
        """Of the tokens that came next."""
        return self._turn(self._gradient(self._dense, LossConfig(kind="hard")))

    def _turn(self, g: torch.Tensor) -> dict[str, float]:
        exact = self._exact
        cosine = float(g @ exact / (g.norm() * exact.norm()))
        return {
            "step_angle": math.degrees(math.acos(min(1.0, cosine))),
            "step_error": float((g - exact).square().sum() / exact.square().sum()),
        }

    def _gradient(
        self,
        rows: Rows,
        loss: LossConfig | None = None,
        encode: Callable[[torch.Tensor], Targets] | None = None,
    ) -> torch.Tensor:
        """Of the summed loss, in all weights, float64 [W]."""
        tokens = rows.inputs["tokens"]
        assert isinstance(tokens, Ragged)
        self._student.zero_grad()
        for row in range(len(rows)):
            found = rows.take(np.array([row])).decode(self._pilot.head.name)
            if encode is not None:
                assert isinstance(found, DenseTargets)
                found = encode(torch.from_numpy(found.logits))
            seen = torch.from_numpy(tokens[row].astype(np.int64))
            logits = self._student(seen[None, :-1])[0]
            part = distillation_loss(loss or LossConfig(), logits, to_torch(found), seen[1:], reduction="sum")
            part.backward()  # type: ignore[no-untyped-call]
        grads = [weights.grad for weights in self._student.parameters()]
        return torch.cat([grad.flatten().double() for grad in grads if grad is not None])
