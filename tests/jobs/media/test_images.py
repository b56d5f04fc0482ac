"""Photographs in a folder, mixed crops of each, a pretrained network, and a student: by the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.targets import Store
from student.student import restore
from tests.jobs.media.corpora import cifar, photos
from tests.real_data import real_data

Decant = Callable[..., Any]


@pytest.fixture
def words(tmp_path: Path, decant: Decant) -> list[str]:
    """The example's job file, and what of it is set otherwise."""
    weights = real_data("weights/resnet_cifar") / "resnet20-12fca82f.th"
    (tmp_path / "job.yaml").write_text(decant(tmp_path, "config", "example", "images").stdout)
    teacher = {
        "kind": "torch",
        "factory": "jobs.recipes.resnet:load",
        "arguments": {"path": str(weights), "depth": 20},
        "heads": {"logits": 10},
        "device": "cpu",
    }
    changes = {
        "corpus.unit_bytes": 100_000,
        "views.size": 32,
        "views.views": 2,
        "teacher": teacher,
        "store.heads.logits": {"kind": "dense"},
        "label.batching.threads": 1,
        "train.model.channels": [16, 32],
        "train.steps": 150,
        "train.batch_rows": 32,
        "train.warmup_steps": 10,
        "train.device": "cpu",
    }
    return ["job.yaml", *(f"{key}={value}" for key, value in changes.items())]


@pytest.mark.slow
def test_a_student_that_replays_mixed_crops_from_the_folder_learns_to_see(
    words: list[str], decant: Decant, tmp_path: Path
) -> None:
    photos(tmp_path / "photos", 240)
    labelled = decant(tmp_path, "label", *words)
    assert labelled.exit_code == 0, labelled.stderr
    store = Store.open(str(tmp_path / "runs" / "images"))
    assert [item.name for item in store.spec.inputs] == ["ledger", "digest"]
    assert sum(commit.rows for commit in store.commits()) == 480
    trained = decant(tmp_path, "train", *words)
    assert trained.exit_code == 0, trained.stderr

    student = restore(tmp_path / "runs" / "cnn" / "checkpoints" / "last", store.spec)
    images, classes, _ = cifar("test", 500)
    with torch.no_grad():
        said = student.model(torch.from_numpy(images.copy()).permute(0, 3, 1, 2)).argmax(1).numpy()
    # By chance 50 of 500 are right, with a deviation of 6.7.
    assert np.sum(said == classes) > 85


def test_photographs_that_come_later_are_labelled_alone_and_learned_from_too(
    words: list[str], decant: Decant, tmp_path: Path
) -> None:
    photos(tmp_path / "photos", 60)
    later = tmp_path / "later"
    later.mkdir()
    for path in sorted((tmp_path / "photos").iterdir())[:20]:
        path.rename(later / path.name)
    planned = decant(tmp_path, "plan", *words)
    assert planned.exit_code == 0, planned.stderr
    assert "40 files" in planned.stdout
    assert "40 records" in decant(tmp_path, "label", *words).stdout
    store = Store.open(str(tmp_path / "runs" / "images"))
    before = {commit.unit: commit.attempt for commit in store.commits()}
    words.append("corpus.urls=[photos, later]")
    grown = decant(tmp_path, "label", *words)
    assert grown.exit_code == 0, grown.stderr
    after = {commit.unit: commit.attempt for commit in store.commits()}
    assert before.items() < after.items()
    keys = [key for commit in store.commits() for rows in store.read(commit) for key in rows.keys]
    assert len(set(keys)) == 60
    assert sum(key.startswith(str(later)) for key in set(keys)) == 20
    trained = decant(tmp_path, "train", *words, "train.steps=4", "train.batch_rows=30")
    assert trained.exit_code == 0, trained.stderr
