"""Hinton's recipe: all of it from one command, resumable, through a store that knows the labels."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.recipes import hinton_results, mnist
from jobs.recipes.hinton import TRANSFER
from jobs.recipes.networks import DropoutNet, digit_teacher, jittered
from jobs.recipes.teaching import TeacherSettings, teach
from pipeline.targets.errors import ConfigError, CorpusMissing, CorpusUnreadable
from pipeline.targets.store import Store
from tests.jobs.recipes.data import write_idx, write_mnist


@pytest.mark.slow
def test_one_command_makes_all_and_a_second_run_trains_nothing_anew(
    decant: Callable[..., Any], tmp_path: Path
) -> None:
    write_mnist(tmp_path / "data")
    words = ["recipe", "hinton", "--quick", "--data", "data", "--output", "out", "--seeds", "1"]
    result = decant(tmp_path, *words, "--members", "2")
    assert result.exit_code == 0, result.output
    folder = tmp_path / "out"
    made = json.loads((folder / "results.json").read_text())
    assert set(made["values"]) >= {row.name for row in hinton_results.ROWS} | {"sweep-16-1", "sweep-8-20"}
    assert all(len(values) == 1 for values in made["values"].values())
    table = (folder / "table.md").read_text()
    assert all(row.title.strip() in table for row in hinton_results.ROWS)
    assert "<svg" in (folder / "figure.svg").read_text()

    for name, digits in TRANSFER.items():
        store = Store.open(str(folder / "stores" / f"teacher-0-{name}"))
        labels = np.concatenate([rows.inputs["label"] for c in store.commits() for rows in store.read(c)])
        assert set(labels.tolist()) == set(digits), name

    weights = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    again = decant(tmp_path, *words, "--members", "2")
    assert again.exit_code == 0, again.output
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == weights
    assert json.loads((folder / "results.json").read_text()) == made


def test_a_teacher_that_was_stopped_ends_with_the_weights_it_would_have_had(tmp_path: Path) -> None:
    write_mnist(tmp_path, train=100)
    digits = mnist.read(tmp_path, "train")
    asked = TeacherSettings(hidden=[16], epochs=3, batch_rows=30, checkpoint_epochs=1)

    def stop(done: int, loss: float) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        teach(tmp_path / "stopped", digits, asked, 0, stop)
    told: list[int] = []
    stopped = teach(tmp_path / "stopped", digits, asked, 0, lambda done, loss: told.append(done))
    assert told == [2, 3]
    whole = teach(tmp_path / "whole", digits, asked, 0, lambda done, loss: None)
    ours, theirs = (digit_teacher([16], str(path)).state_dict() for path in (stopped, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with pytest.raises(ConfigError, match="other settings"):
        teach(tmp_path / "whole", digits, asked, 1, lambda done, loss: None)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), most=st.integers(0, 3))
def test_a_jittered_digit_is_the_digit_moved_by_no_more_than_asked(seed: int, most: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    digits = torch.randint(256, (4, mnist.PIXELS), dtype=torch.uint8, generator=generator)
    padded = np.pad(digits.view(-1, 28, 28).numpy(), ((0, 0), (most, most), (most, most)))
    for whole, moved in zip(padded, jittered(digits, most, generator).view(-1, 28, 28).numpy(), strict=True):
        places = [(y, x) for y in range(2 * most + 1) for x in range(2 * most + 1)]
        assert any((whole[y : y + 28, x : x + 28] == moved).all() for y, x in places)


def test_dropout_keeps_the_mean_and_does_nothing_to_a_trained_net() -> None:
    torch.manual_seed(0)
    net = DropoutNet([400], dropout=0.25).train()
    dropout, ones = net.layers[2], torch.ones(400, 500)
    dropped = dropout(ones)
    assert float((dropped == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    assert float(dropped.mean()) == pytest.approx(1, abs=0.01)
    assert torch.equal(dropout.eval()(ones), ones)


def test_no_hidden_unit_gets_longer_weights_than_allowed() -> None:
    net = DropoutNet([20, 20])
    hidden, last = [net.layers[i] for i in (0, 3)], net.layers[-1]
    with torch.no_grad():
        for layer in [*hidden, last]:
            layer.weight.mul_(100)
    before = last.weight.clone()
    net.constrain(2.0)
    for layer in hidden:
        torch.testing.assert_close(layer.weight.norm(dim=1), torch.full((20,), 2.0))
    assert torch.equal(last.weight, before)


def test_a_corrected_bias_makes_the_fewest_errors_and_moves_only_its_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (500,), generator=generator)
    logits = 3 * torch.nn.functional.one_hot(labels, 10) + torch.randn(500, 10, generator=generator)
    logits[:, 3] -= 4
    shift, corrected = hinton_results.bias_corrected(logits, labels.numpy(), [3], np.arange(0, 10, 0.5))
    assert 2.5 <= shift <= 5.5
    assert (corrected.argmax(-1) != labels).sum() < 0.6 * (logits.argmax(-1) != labels).sum()
    others = [c for c in range(10) if c != 3]
    assert torch.equal(corrected[:, others], logits[:, others])


@pytest.mark.parametrize(
    "damage",
    [b"", b"no gzip", gzip.compress(b"\0\0\x08\x03" + bytes(20))],
    ids=["empty", "no gzip", "a header of nothing"],
)
def test_broken_files_are_refused_by_name(tmp_path: Path, damage: bytes) -> None:
    write_mnist(tmp_path, train=20, test=10)
    file = tmp_path / "mnist" / "train-images-idx3-ubyte.gz"
    file.write_bytes(damage)
    with pytest.raises(CorpusUnreadable, match=r"train-images-idx3-ubyte\.gz"):
        mnist.read(tmp_path, "train")
    file.unlink()
    with pytest.raises(CorpusMissing, match="--data"):
        mnist.read(tmp_path, "train")
    write_idx(file, np.zeros((7, 28, 28), np.uint8))
    with pytest.raises(CorpusUnreadable, match="labels"):
        mnist.read(tmp_path, "train")
