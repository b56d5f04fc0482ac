"""Encoders as teachers of embeddings: texts, images and sounds, of tiny real architectures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from pipeline.label import Labeller, prepare
from pipeline.targets.errors import ConfigError, UserError
from pipeline.teachers import Encoder
from pipeline.teachers.base import Output
from tests.pipeline.teachers.tiny import (
    TINY,
    VOCABULARY,
    add_special_tokens,
    array_batch,
    enlarge,
    save,
    token_batch,
)

ROWS = [list(range(1, 20)), [5, 6, 7], list(range(40, 50))]


def text_model(architecture: str) -> Any:
    configs: dict[str, Any] = {
        "bert": lambda: transformers.BertConfig(vocab_size=VOCABULARY, **TINY),
        "modernbert": lambda: transformers.ModernBertConfig(
            vocab_size=VOCABULARY, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1,
            sep_token_id=2, **TINY,
        ),
        "t5": lambda: transformers.T5Config(
            vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4
        ),
        "qwen3": lambda: transformers.Qwen3Config(
            vocab_size=VOCABULARY, num_key_value_heads=2, head_dim=8, **TINY
        ),
    }  # fmt: skip
    return enlarge(transformers.AutoModel.from_config(configs[architecture]()))


def hidden_of(model: Any, row: list[int]) -> torch.Tensor:
    encoder = model.get_encoder() if model.config.is_encoder_decoder else model
    with torch.no_grad():
        found: torch.Tensor = encoder(input_ids=torch.tensor([row])).last_hidden_state[0]
    return found


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("architecture", ["bert", "modernbert", "t5", "qwen3"])
def test_a_texts_vector_is_its_own_hidden_states_pooled_whatever_it_is_padded_to(
    tmp_path: Path, architecture: str, pooling: Any
) -> None:
    model = text_model(architecture)
    teacher = Encoder(path=save(model, tmp_path), pooling=pooling, device="cpu").load()
    assert teacher.outputs == {"embedding": Output(32, "single", vector=True)}
    together = teacher(token_batch(ROWS))["embedding"]
    for row, found in zip(ROWS, together, strict=True):
        hidden = hidden_of(model, row)
        expected = {"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}[pooling]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_special_tokens_stand_around_a_text_and_count_in_its_mean(tmp_path: Path) -> None:
    model = text_model("bert")
    path = save(model, tmp_path)
    add_special_tokens(tmp_path, 90, 91)
    teacher = Encoder(path=path, device="cpu").load()
    found = teacher(token_batch(ROWS))["embedding"]
    for row, vector in zip(ROWS, found, strict=True):
        expected = hidden_of(model, [90, *row, 91]).mean(0)
        torch.testing.assert_close(vector, expected, rtol=1e-4, atol=1e-4)


def test_vectors_have_length_one_if_that_is_asked_for(tmp_path: Path) -> None:
    path = save(text_model("bert"), tmp_path)
    plain = Encoder(path=path, device="cpu").load()(token_batch(ROWS))["embedding"]
    scaled = Encoder(path=path, normalize=True, device="cpu").load()(token_batch(ROWS))["embedding"]
    torch.testing.assert_close(scaled, plain / plain.norm(dim=1, keepdim=True))
    assert not torch.allclose(plain.norm(dim=1), torch.ones(len(ROWS)), atol=0.05)


def test_a_hidden_layer_is_the_models_own_and_one_that_is_not_there_is_named(tmp_path: Path) -> None:
    model = text_model("bert")
    path = save(model, tmp_path)
    with torch.no_grad():
        layers = model(input_ids=torch.tensor([ROWS[0]]), output_hidden_states=True).hidden_states
    for layer in (0, 1, -1):
        teacher = Encoder(path=path, layer=layer, pooling="cls", device="cpu").load()
        found = teacher(token_batch([ROWS[0]]))["embedding"]
        torch.testing.assert_close(found, layers[layer][:, 0])
    with pytest.raises(UserError, match=r"teacher\.layer 7 .* 3 hidden layers"):
        Encoder(path=path, layer=7, device="cpu").load()(token_batch(ROWS))


def test_a_masked_language_model_embeds_although_it_was_saved_without_a_pooler(tmp_path: Path) -> None:
    config = transformers.BertConfig(vocab_size=VOCABULARY, **TINY)
    model = enlarge(transformers.AutoModelForMaskedLM.from_config(config))
    teacher = Encoder(path=save(model, tmp_path), pooling="cls", device="cpu").load()
    with torch.no_grad():
        expected = model.bert(input_ids=torch.tensor([ROWS[1]])).last_hidden_state[:, 0]
    torch.testing.assert_close(teacher(token_batch([ROWS[1]]))["embedding"], expected)


def test_what_shapes_a_vector_is_part_of_the_teachers_description(tmp_path: Path) -> None:
    path = save(text_model("bert"), tmp_path)
    ways: list[dict[str, Any]] = [{}, {"pooling": "cls"}, {"layer": 1}, {"normalize": True}]
    descriptions = [Encoder(path=path, device="cpu", **way).load().description for way in ways]
    assert len({str(description) for description in descriptions}) == len(ways)
    assert len({description["fingerprint"] for description in descriptions}) == 1


@pytest.mark.parametrize("kind", ["vit", "dinov2", "resnet"])
def test_an_image_is_embedded_by_patches_or_by_its_map(tmp_path: Path, kind: str) -> None:
    configs: dict[str, Any] = {
        "vit": lambda: transformers.ViTConfig(image_size=8, patch_size=4, **TINY),
        "dinov2": lambda: transformers.Dinov2Config(
            image_size=8, patch_size=4, hidden_size=32, num_hidden_layers=2, num_attention_heads=4
        ),
        "resnet": lambda: transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 32], depths=[1, 1], layer_type="basic"
        ),
    }
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(configs[kind]()).eval()
    pixels = np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32)
    teacher = Encoder(path=save(model, tmp_path), device="cpu").load()
    assert teacher.outputs == {"embedding": Output(32, "single", vector=True)}
    with torch.no_grad():
        hidden = model(pixel_values=torch.from_numpy(pixels)).last_hidden_state
    expected = hidden.mean(dim=(2, 3)) if kind == "resnet" else hidden.mean(dim=1)
    found = teacher(array_batch(pixels))["embedding"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_sound_is_embedded_and_one_that_is_longer_does_not_change_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(
        conv_dim=(16, 16), conv_stride=(4, 2), conv_kernel=(8, 4), num_feat_extract_layers=2,
        num_conv_pos_embedding_groups=2, num_conv_pos_embeddings=4, **TINY,
    )  # fmt: skip
    model = transformers.AutoModel.from_config(config).eval()
    teacher = Encoder(path=save(model, tmp_path), device="cpu").load()
    rng = np.random.default_rng(0)
    sounds = [rng.normal(size=n).astype(np.float32) for n in (400, 800, 400)]
    padded = np.zeros((3, 800), dtype=np.float32)
    for i, sound in enumerate(sounds):
        padded[i, : len(sound)] = sound
    batch = array_batch(padded, "audio")
    batch = type(batch)(batch.inputs, np.array([400, 800, 400]))
    found = teacher(batch)["embedding"]
    for sound, vector in zip(sounds, found, strict=True):
        with torch.no_grad():
            expected = model(torch.from_numpy(sound)[None]).last_hidden_state.mean(1)[0]
        torch.testing.assert_close(vector, expected, rtol=1e-4, atol=1e-4)


def test_views_that_are_no_tokens_are_a_users_mistake(tmp_path: Path) -> None:
    teacher = Encoder(path=save(text_model("bert"), tmp_path), device="cpu").load()
    with pytest.raises(UserError, match=r"reads tokens, and a view has \['pixels'\]: use token_windows"):
        teacher(array_batch(np.zeros((1, 3, 8, 8), dtype=np.float32)))


def test_a_corpus_of_texts_becomes_a_store_of_their_vectors(tmp_path: Path, make_job: Any) -> None:
    model = text_model("bert")
    path = save(model, tmp_path / "model")
    job = make_job(
        teacher={"kind": "encoder", "path": path, "device": "cpu"},
        heads={"embedding": {"kind": "embedding", "dtype": "float32"}},
    )
    store = prepare(job)
    assert store.spec.teacher["pooling"] == "mean"
    labeller = Labeller(job)
    commit = labeller.label(next(store.planned()))
    labeller.close()
    rows = next(store.read(commit))
    vectors = rows.decode("embedding").vectors
    for i in range(0, len(rows), 5):
        expected = hidden_of(model, rows.take(np.array([i])).inputs["tokens"].values.tolist()).mean(0)
        torch.testing.assert_close(torch.from_numpy(vectors[i]), expected, rtol=1e-4, atol=1e-4)


def test_a_vector_is_not_stored_as_a_distribution(tmp_path: Path, make_job: Any) -> None:
    path = save(text_model("bert"), tmp_path / "model")
    job = make_job(teacher={"kind": "encoder", "path": path}, heads={"embedding": {"kind": "threshold"}})
    with pytest.raises(ConfigError, match="gives a vector, and the codec threshold is of distributions"):
        prepare(job)
