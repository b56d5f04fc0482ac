"""The student's side as a library: what the package's docstring shows works as it stands."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import student
from student import data
from student.data import Batch
from student.losses import sparse_cross_entropy


def test_the_loop_in_the_docstring_learns(token_store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    code = textwrap.dedent(str(student.__doc__).split(":\n\n", 1)[1].split("\n\nThe iteration")[0])
    whole = data.TargetReader.__iter__

    def enough(reader: data.TargetReader) -> Iterator[Batch]:
        for _, batch in zip(range(30), whole(reader), strict=False):
            yield batch

    monkeypatch.setattr(data.TargetReader, "__iter__", enough)
    model = torch.nn.Embedding(23, 23)
    url = token_store()
    (batch,) = data.TargetReader(url, split="all", batch_rows=26).epoch(0)

    def loss() -> float:
        targets: Any = batch.targets["logits"]
        return sparse_cross_entropy(batch.pick(model(batch.inputs["tokens"]), "logits"), targets).item()

    before = loss()
    optimizer = torch.optim.SGD(model.parameters(), lr=5.0)
    exec(code, {"url": url, "model": model, "optimizer": optimizer})
    assert loss() < before - 0.5


def test_configuring_and_listening_need_no_torch() -> None:
    code = "import student.config, student.events, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
