"""Photographs with captions, models of both, and what is read back from their stores: by the command."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.config import load_job
from jobs.replay import CorpusRecords
from pipeline.targets import Store
from student.data import TargetReader
from tests.jobs.media.corpora import CLASSES, captions
from tests.pipeline.teachers.tiny import add_special_tokens, save, seeing, towers

Decant = Callable[..., Any]

SAMPLES = 60
WORDS = ["a", "small", "photo", "of", *CLASSES]


@pytest.fixture
def run(tmp_path: Path, decant: Decant) -> Callable[..., Any]:
    """The command on the example's job, with a tar of captions and a model directory beside it."""
    (tmp_path / "captions").mkdir()
    captions(tmp_path / "captions" / "0000.tar", SAMPLES)
    (tmp_path / "job.yaml").write_text(decant(tmp_path, "config", "example", "captions").stdout)

    def run(command: str, **changes: Any) -> Any:
        result = decant(tmp_path, command, "job.yaml", *words(changes))
        assert result.exit_code == 0, result.stderr
        return result

    return run


def words(changes: dict[str, Any]) -> list[str]:
    small = {"views.image.size": 8, "views.text.length": 8, "teacher.device": "cpu", "train.device": "cpu"}
    return [f"{key.replace('__', '.')}={value}" for key, value in {**small, **changes}.items()]


def made(folder: Path, model: Any) -> Any:
    """The model, and its directory with a tokenizer."""
    save(model, folder)
    add_special_tokens(folder, 90, 91, WORDS)
    return model


def test_what_a_model_that_sees_says_of_a_caption_is_read_back_with_the_pixels_it_saw(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    model = made(tmp_path / "models" / "teacher", seeing("llava"))
    settings = {"store__heads__logits": {"kind": "dense", "dtype": "float32"}}
    assert f"{SAMPLES} records" in run("label", **settings).stdout
    job = load_job(tmp_path / "job.yaml", words(settings))
    store = Store.open(job.store.url)
    reader = TargetReader(job.store.url, split="all", batch_rows=20, records=CorpusRecords(store, job.corpus))
    count = 0
    with closing(reader.epoch(0)) as batches:  # type: ignore[type-var]
        for batch in batches:
            tokens, pixels = batch.inputs["tokens"], batch.inputs["image"].float() / 255
            # A begin token and four places for the image stand before each text.
            ahead = torch.tensor([90, 96, 96, 96, 96]).expand(len(tokens), -1)
            with torch.no_grad():
                said = model(input_ids=torch.cat([ahead, tokens], 1), pixel_values=pixels).logits[:, 5:]
            torch.testing.assert_close(
                batch.pick(said, "logits")[:, : reader.spec.head("logits").size],
                batch.targets["logits"].logits,
                rtol=1e-3,
                atol=1e-3,
            )
            count += len(batch)
    assert count == SAMPLES


@pytest.mark.slow
def test_a_small_language_model_learns_from_the_captions_targets(
    run: Callable[..., Any], decant: Decant, tmp_path: Path
) -> None:
    made(tmp_path / "models" / "teacher", seeing("llava"))
    run("label")
    assert "a·small·photo·of·a" in decant(tmp_path, "inspect", "job.yaml").stdout
    model = {"train__model__width": 32, "train__model__layers": 1, "train__batch_rows": 16}
    said = run("train", **model, train__steps=20, train__holdout=0).stdout
    assert "trained 20 steps" in said


@pytest.mark.slow
def test_vectors_of_two_towers_are_read_back_and_taught_to_a_small_network(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    model = made(tmp_path / "models" / "teacher", towers("clip"))
    settings = {
        "teacher": {"kind": "two_towers", "path": "models/teacher", "device": "cpu"},
        "store__heads": {"image": {"kind": "embedding"}, "text": {"kind": "embedding"}},
    }
    run("label", **settings)
    job = load_job(tmp_path / "job.yaml", words(settings))
    store = Store.open(job.store.url)
    reader = TargetReader(
        job.store.url, split="all", batch_rows=SAMPLES, records=CorpusRecords(store, job.corpus)
    )
    (batch,) = reader.epoch(0)
    with torch.no_grad():
        vectors = model.get_image_features(pixel_values=batch.inputs["image"].float() / 255).pooler_output
    np.testing.assert_allclose(batch.targets["image"].vectors, vectors, rtol=2e-3, atol=2e-3)
    student = {
        "train__head": "image",
        "train__input": "image",
        "train__model": {"kind": "small_cnn", "channels": [8], "hidden": 32},
        "train__loss__kind": "cosine_distance",
        "train__steps": 40,
        "train__holdout": 0,
        "train__batch_rows": 20,
    }
    assert "trained 40 steps" in run("train", **settings, **student).stdout
