"""Teachers of images and texts together, of tiny real architectures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from pipeline.targets.errors import TeacherError, UserError
from pipeline.teachers import ImageText, TwoTowers
from pipeline.teachers.base import Output
from tests.pipeline.teachers.tiny import (
    TINY,
    VOCABULARY,
    add_special_tokens,
    array_batch,
    save,
    seeing,
    token_batch,
    towers,
)

ROWS = [[5, 6, 7, 8, 9], [3, 4], [11, 12, 13]]
PIXELS = np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32)


def text_vector(model: Any, kind: str, row: list[int]) -> torch.Tensor:
    """As the model's own processor would feed it."""
    tokens = [90, *row, 91]
    if kind == "siglip":
        tokens += [1] * (16 - len(tokens))
    with torch.no_grad():
        found: torch.Tensor = model.get_text_features(input_ids=torch.tensor([tokens])).pooler_output[0]
    return found


@pytest.mark.parametrize(("kind", "size"), [("clip", 24), ("siglip", 32)])
def test_images_and_texts_have_vectors_in_one_space_and_two_heads(
    tmp_path: Path, kind: str, size: int
) -> None:
    model = towers(kind)
    path = save(model, tmp_path)
    add_special_tokens(tmp_path, 90, 91)
    teacher = TwoTowers(path=path, device="cpu").load()
    vector = Output(size, "single", vector=True)
    assert teacher.outputs == {"image": vector, "text": vector}
    found = teacher(token_batch(ROWS, pixels=PIXELS))
    with torch.no_grad():
        image = model.get_image_features(pixel_values=torch.from_numpy(PIXELS)).pooler_output
    torch.testing.assert_close(found["image"], image, rtol=1e-4, atol=1e-5)
    for row, vector in zip(ROWS, found["text"], strict=True):
        torch.testing.assert_close(vector, text_vector(model, kind, row), rtol=1e-4, atol=1e-4)


def test_one_tower_alone_needs_its_own_input_only(tmp_path: Path) -> None:
    path = save(towers("clip"), tmp_path)
    add_special_tokens(tmp_path, 90, 91)
    teacher = TwoTowers(path=path, towers=["image"], normalize=True, device="cpu").load()
    assert list(teacher.outputs) == ["image"]
    found = teacher(array_batch(PIXELS))["image"]
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    with pytest.raises(UserError, match="reads tokens"):
        TwoTowers(path=path, towers=["text"], device="cpu").load()(array_batch(PIXELS))


def test_a_model_without_towers_is_refused(tmp_path: Path) -> None:
    model = transformers.BertModel(transformers.BertConfig(vocab_size=VOCABULARY, **TINY))
    with pytest.raises(TeacherError, match="a BertModel, which has not the towers image and text"):
        TwoTowers(path=save(model, tmp_path), device="cpu").load()


PLACES = {"llava": 4, "smolvlm": 1}
"""Tokens that stand for one image: 4 patches, and 4 put together."""


@pytest.mark.parametrize("kind", ["llava", "smolvlm"])
@pytest.mark.parametrize("special", [False, True])
def test_every_next_token_of_a_text_is_told_given_its_image(tmp_path: Path, kind: str, special: bool) -> None:
    model = seeing(kind)
    path = save(model, tmp_path)
    if special:
        add_special_tokens(tmp_path, 90, 91)
    teacher = ImageText(path=path, device="cpu").load()
    assert teacher.outputs == {"logits": Output(VOCABULARY, "next_token")}
    found = teacher(token_batch(ROWS, pixels=PIXELS))["logits"]
    assert found.shape == (3, 5, VOCABULARY)
    ahead = [90] * special + [96] * PLACES[kind]
    for i, row in enumerate(ROWS):
        pixels = torch.from_numpy(PIXELS[i : i + 1])
        pixels = pixels[:, None] if kind == "smolvlm" else pixels
        with torch.no_grad():
            bare = model(input_ids=torch.tensor([ahead + row]), pixel_values=pixels).logits[0, len(ahead) :]
        torch.testing.assert_close(found[i, : len(row)], bare, rtol=1e-3, atol=1e-3)
    other = teacher(token_batch(ROWS, pixels=PIXELS[::-1].copy()))["logits"]
    assert not torch.allclose(found[0, :5], other[0, :5], rtol=1e-2, atol=1e-2)


def test_a_text_that_holds_the_images_place_is_refused(tmp_path: Path) -> None:
    teacher = ImageText(path=save(seeing("llava"), tmp_path), device="cpu").load()
    with pytest.raises(UserError, match="holds the token 96, which stands for the image"):
        teacher(token_batch([[1, 96, 2]], pixels=PIXELS[:1]))


def test_bytes_of_an_image_are_normalised_for_every_teacher_that_sees(tmp_path: Path) -> None:
    said = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    byte = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8)).astype(np.uint8)
    mean, std = (np.array(said[name])[:, None, None] for name in ("image_mean", "image_std"))
    normal = ((byte / 255 - mean) / std).astype(np.float32)
    for kind, model, head in (
        (TwoTowers, towers("clip"), "image"),
        (ImageText, seeing("llava"), "logits"),
    ):
        folder = tmp_path / head
        path = save(model, folder)
        add_special_tokens(folder, 90, 91)
        for name, written in (
            ("preprocessor_config.json", said if kind is TwoTowers else {"do_rescale": False}),
            ("processor_config.json", {} if kind is TwoTowers else {"image_processor": said}),
        ):
            (folder / name).write_text(json.dumps(written))
        teacher = kind(path=path, device="cpu").load()  # type: ignore[attr-defined]
        bytes_, floats = (teacher(token_batch(ROWS[:2], pixels=p))[head] for p in (byte, normal))
        torch.testing.assert_close(bytes_[0], floats[0], rtol=1e-3, atol=1e-3)
