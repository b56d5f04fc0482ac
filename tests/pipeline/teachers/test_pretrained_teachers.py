"""Teachers from transformers directories: tiny real architectures, made here, no network."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from pipeline.targets.errors import TeacherError, UserError
from pipeline.teachers import AudioClassifier, Batch, CausalLM, ImageClassifier, SequenceClassifier
from pipeline.teachers.base import Output
from pipeline.teachers.causal_lm import find_projection
from pipeline.teachers.logits import Projected
from tests.pipeline.teachers.tiny import TINY, VOCABULARY, add_special_tokens, array_batch, save
from tests.pipeline.teachers.tiny import token_batch as batch


def language_model(architecture: str) -> Any:
    """A random model; its weights are large enough for differences to show."""
    torch.manual_seed(0)
    configs = {
        "llama": transformers.LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=2, **TINY),
        "gpt2": transformers.GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64
        ),
        "qwen3": transformers.Qwen3Config(vocab_size=VOCABULARY, num_key_value_heads=2, head_dim=8, **TINY),
        "mamba": transformers.MambaConfig(
            vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4
        ),
    }
    model = transformers.AutoModelForCausalLM.from_config(configs[architecture])
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3", "mamba"])
def test_padding_changes_no_views_logits(tmp_path: Path, architecture: str) -> None:
    model = language_model(architecture)
    teacher = CausalLM(path=save(model, tmp_path), device="cpu").load()
    assert teacher.outputs == {"logits": Output(VOCABULARY, "next_token")}
    rows = [list(range(1, 20)), [5, 6, 7], list(range(40, 50))]
    together = teacher(batch(rows))["logits"].whole()
    assert together.shape == (3, 19, VOCABULARY)
    for i, row in enumerate(rows):
        alone = teacher(batch([row]))["logits"].whole()[0]
        bare = model(input_ids=torch.tensor([row])).logits[0].detach()
        torch.testing.assert_close(alone, bare, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(together[i, : len(row)], bare, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_compiled_model_says_the_same_to_batches_of_any_shape(tmp_path: Path) -> None:
    path = save(language_model("llama"), tmp_path)
    plain = CausalLM(path=path, device="cpu").load()
    compiled = CausalLM(path=path, device="cpu", compile=True).load()
    assert compiled.model.base_model._compiled_call_impl is not None
    assert compiled.description == plain.description
    for rows in ([[1, 2, 3, 4, 5]], [list(range(1, 12)), [3, 4]], [[9, 8, 7], [6, 5, 4], [3, 2, 1]]):
        with torch.inference_mode():
            ours, theirs = (teacher(batch(rows))["logits"].whole() for teacher in (compiled, plain))
        for i, row in enumerate(rows):
            torch.testing.assert_close(ours[i, : len(row)], theirs[i, : len(row)], rtol=1e-4, atol=1e-4)


SCALED: list[tuple[str, dict[str, Any]]] = [
    ("Cohere", {"logit_scale": 0.0625}),
    ("Granite", {"logits_scaling": 8.0}),
    ("Gemma2", {"final_logit_softcapping": 3.0, "head_dim": 8}),
    ("Phi", {}),  # its head has a bias
]


@pytest.mark.parametrize(("architecture", "changes"), SCALED)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_made_of_hidden_states_are_the_models_own(
    tmp_path: Path, architecture: str, changes: dict[str, Any], dtype: str
) -> None:
    config = getattr(transformers, f"{architecture}Config")(
        vocab_size=VOCABULARY, num_key_value_heads=2, pad_token_id=0, **TINY, **changes
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    path = save(model, tmp_path)
    teacher = CausalLM(path=path, dtype=dtype, device="cpu").load()
    assert teacher.projection is not None
    assert (teacher.projection.scale != 1) == any("scal" in name for name in changes)
    assert teacher.projection.softcap == changes.get("final_logit_softcapping")
    rows = [list(range(1, 20)), [5, 6, 7]]
    lazy = teacher(batch(rows))["logits"]
    assert isinstance(lazy, Projected)
    teacher.projection = None
    given = teacher(batch(rows))["logits"]
    assert isinstance(given, torch.Tensor)
    error = 1e-4 if dtype == "float32" else 3e-2
    torch.testing.assert_close(
        lazy.whole().to(given.dtype), given, rtol=error, atol=error * float(given.std())
    )
    some = torch.tensor([21, 0, 3])
    torch.testing.assert_close(lazy.rows(some), lazy.whole().flatten(0, 1)[some])


@pytest.mark.parametrize(("architecture", "changes"), SCALED)
@pytest.mark.parametrize("garbage", [1e6, 1e30, float("inf"), float("nan")])
def test_what_pads_the_vocabulary_does_not_hide_how_logits_are_made(
    architecture: str, changes: dict[str, Any], garbage: float
) -> None:
    config = getattr(transformers, f"{architecture}Config")(
        vocab_size=VOCABULARY,
        num_key_value_heads=2,
        pad_token_id=0,
        tie_word_embeddings=False,
        **TINY,
        **changes,
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    clean = find_projection(model)
    model.get_output_embeddings().weight[80:] = garbage
    found = find_projection(model)
    assert clean is not None
    assert found is not None
    assert (found.scale, found.softcap) == (clean.scale, clean.softcap)
    assert (found.scale != 1) == any("scal" in name for name in changes)


def test_a_model_that_makes_its_logits_in_another_way_is_asked_for_them(tmp_path: Path) -> None:
    model = language_model("llama")
    teacher = CausalLM(path=save(model, tmp_path), device="cpu").load()
    forward = type(teacher.model).forward

    class Odd(type(teacher.model)):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            answer = forward(self, *args, **kwargs)
            answer.logits = answer.logits.sin()
            return answer

    teacher.model.__class__ = Odd
    assert find_projection(teacher.model) is None


def test_logits_keep_the_models_type_and_need_no_gradient(tmp_path: Path) -> None:
    path = save(language_model("llama"), tmp_path)
    teacher = CausalLM(path=path, dtype="bfloat16", device="cpu").load()
    logits = teacher(batch([[1, 2, 3]]))["logits"].whole()
    assert logits.dtype == torch.bfloat16
    assert not logits.requires_grad
    assert not teacher.model.training
    eager = CausalLM(path=path, attention="eager", device="cpu").load()
    assert eager.model.config._attn_implementation == "eager"


def test_the_fingerprint_is_of_the_weights_not_of_their_place(tmp_path: Path) -> None:
    model = language_model("llama")
    one = CausalLM(path=save(model, tmp_path / "one")).load().description
    assert one == CausalLM(path=save(model, tmp_path / "two")).load().description
    assert str(tmp_path) not in json.dumps(one)
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    assert (
        one["fingerprint"] != CausalLM(path=save(model, tmp_path / "two")).load().description["fingerprint"]
    )
    assert one != CausalLM(path=str(tmp_path / "one"), dtype="bfloat16").load().description


def test_a_path_that_is_no_model_is_a_users_mistake_in_one_sentence(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none", "no config.json"), (tmp_path, "no config.json")):
        with pytest.raises(UserError, match=reason) as caught:
            CausalLM(path=str(path)).load()
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    model = language_model("llama")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors"):
        CausalLM(path=str(tmp_path)).load()


def test_broken_weights_and_an_unknown_architecture_are_named(tmp_path: Path) -> None:
    path = save(language_model("llama"), tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TeacherError, match="does not load as AutoModelForCausalLM") as caught:
        CausalLM(path=path).load()
    assert path in str(caught.value)
    weights.write_bytes(whole)
    (tmp_path / "config.json").write_text('{"model_type": "nosuch"}')
    with pytest.raises(TeacherError, match="nosuch"):
        CausalLM(path=path).load()


def test_code_in_a_models_directory_is_never_run(tmp_path: Path) -> None:
    path = save(language_model("llama"), tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["model_type"] = "custom"
    config["auto_map"] = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    (tmp_path / "model" / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(TeacherError, match="does not load"):
        CausalLM(path=path).load()
    assert not (tmp_path / "ran").exists()


def test_weights_that_are_not_in_the_files_are_refused_not_drawn_at_random(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = transformers.BertModel(transformers.BertConfig(vocab_size=VOCABULARY, **TINY))
    with pytest.raises(TeacherError, match=r"lacks weights .*classifier"):
        SequenceClassifier(path=save(backbone, tmp_path)).load()


@pytest.mark.parametrize("kind", [CausalLM, SequenceClassifier])
def test_tokens_beyond_the_models_positions_or_vocabulary_are_refused(tmp_path: Path, kind: Any) -> None:
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=8)
    auto = "CausalLM" if kind is CausalLM else "SequenceClassification"
    model = getattr(transformers, f"AutoModelFor{auto}").from_config(config)
    teacher = kind(path=save(model, tmp_path)).load()
    teacher(batch([list(range(8))]))
    with pytest.raises(UserError, match=r"8 positions and a view 9 tokens: lower views\.length"):
        teacher(batch([list(range(9))]))
    with pytest.raises(UserError, match="token 97 is beyond the 97"):
        teacher(batch([[1, 97]]))


def test_a_device_that_is_not_here_is_a_users_mistake(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    with pytest.raises(UserError, match="cuda:7"):
        CausalLM(path=save(language_model("llama"), tmp_path), device="cuda:7").load()


def image_model(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "vit":
        config: Any = transformers.ViTConfig(image_size=8, patch_size=4, num_labels=7, **TINY)
    else:
        config = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=7
        )
    return transformers.AutoModelForImageClassification.from_config(config).eval()


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_float_images_go_to_the_model_as_they_are(tmp_path: Path, kind: str) -> None:
    model = image_model(kind)
    teacher = ImageClassifier(path=save(model, tmp_path), device="cpu").load()
    pixels = np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32)
    assert teacher.outputs == {"logits": Output(7, "single")}
    with torch.no_grad():
        expected = model(pixel_values=torch.from_numpy(pixels)).logits
    torch.testing.assert_close(teacher(array_batch(pixels))["logits"], expected, rtol=1e-5, atol=1e-5)


def test_byte_images_are_normalised_as_the_directory_says(tmp_path: Path) -> None:
    model = image_model("vit")
    path = save(model, tmp_path)
    said: dict[str, Any] = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
    said |= {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)

    def logits() -> torch.Tensor:
        teacher = ImageClassifier(path=path, layout="channels_last", device="cpu").load()
        return teacher(array_batch(pixels))["logits"]

    scaled = pixels.transpose(0, 3, 1, 2) / 255
    with torch.no_grad():
        plain = model(pixel_values=torch.tensor(scaled, dtype=torch.float32)).logits
        mean, std = (np.array(said[key])[:, None, None] for key in ("image_mean", "image_std"))
        normal = model(pixel_values=torch.tensor((scaled - mean) / std, dtype=torch.float32)).logits
    torch.testing.assert_close(logits(), plain, rtol=1e-4, atol=1e-5)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    torch.testing.assert_close(logits(), normal, rtol=1e-4, atol=1e-5)


def test_an_image_among_several_inputs_is_the_one_called_pixels(tmp_path: Path) -> None:
    teacher = ImageClassifier(path=save(image_model("vit"), tmp_path), device="cpu").load()
    pixels = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    alone = teacher(array_batch(pixels, "anything"))["logits"]
    torch.testing.assert_close(teacher(batch([[1, 2], [3]], pixels=pixels))["logits"], alone)
    with pytest.raises(UserError, match=r"looks for the input 'pixels', and a view has \['a', 'b'\]"):
        teacher(Batch({"a": pixels, "b": pixels}, np.ones(2, dtype=np.int64)))
    with pytest.raises(UserError, match=r"images of three dimensions, and a view is \[8, 8\]"):
        teacher(array_batch(pixels[:, 0]))


def audio_model(kind: str) -> Any:
    configs: dict[str, Any] = {
        "wav2vec2": lambda: transformers.Wav2Vec2Config(
            conv_dim=(16, 16), conv_stride=(4, 2), conv_kernel=(8, 4), num_feat_extract_layers=2,
            num_conv_pos_embedding_groups=2, num_conv_pos_embeddings=4, classifier_proj_size=8,
            num_labels=6, **TINY,
        ),
        "ast": lambda: transformers.ASTConfig(
            patch_size=4, frequency_stride=4, time_stride=4, max_length=16, num_mel_bins=8, num_labels=6,
            **TINY,
        ),
        "whisper": lambda: transformers.WhisperConfig(
            vocab_size=VOCABULARY, num_mel_bins=8, d_model=32, encoder_layers=2, decoder_layers=2,
            encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48,
            max_source_positions=8, num_labels=6, classifier_proj_size=8, pad_token_id=0, bos_token_id=1,
            eos_token_id=2, decoder_start_token_id=1,
        ),
    }  # fmt: skip
    torch.manual_seed(0)
    return transformers.AutoModelForAudioClassification.from_config(configs[kind]()).eval()


@pytest.mark.parametrize(("kind", "shape"), [("wav2vec2", (400,)), ("ast", (8, 16)), ("whisper", (8, 16))])
def test_waveforms_and_spectrograms_go_to_an_audio_classifier_as_the_views_made_them(
    tmp_path: Path, kind: str, shape: tuple[int, ...]
) -> None:
    model = audio_model(kind)
    frames_first = kind == "ast"
    teacher = AudioClassifier(path=save(model, tmp_path), frames_first=frames_first, device="cpu").load()
    assert teacher.outputs == {"logits": Output(6, "single")}
    sound = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(sound.swapaxes(1, 2) if frames_first else sound)).logits
    torch.testing.assert_close(teacher(array_batch(sound, "audio"))["logits"], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="float32 waveforms or spectrograms, and a view is int16"):
        teacher(array_batch(sound.astype(np.int16), "audio"))


def test_a_waveform_is_classified_as_if_alone_whatever_it_is_padded_to(tmp_path: Path) -> None:
    """A model that normalises over time hears padding: no mask takes it back."""
    model = audio_model("wav2vec2")
    teacher = AudioClassifier(path=save(model, tmp_path), device="cpu").load()
    sounds = np.random.default_rng(0).normal(size=(3, 800)).astype(np.float32)
    sounds[1, 400:] = 0
    found = teacher(Batch({"audio": sounds}, np.array([800, 400, 800])))["logits"]
    with torch.no_grad():
        alone = [
            model(torch.from_numpy(sounds[i : i + 1, :n])).logits[0] for i, n in enumerate((800, 400, 800))
        ]
        padded = model(torch.from_numpy(sounds[1:2])).logits[0]
    torch.testing.assert_close(found, torch.stack(alone), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[1], padded, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pad", [0, None])
@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_sequences_of_any_lengths_are_classified_as_if_alone(
    tmp_path: Path, kind: str, pad: int | None
) -> None:
    if kind == "bert" and pad is None:
        pytest.skip("BERT always has a padding id")
    torch.manual_seed(0)
    configs: dict[str, Any] = {
        "bert": lambda: transformers.BertConfig(vocab_size=VOCABULARY, num_labels=5, **TINY),
        "llama": lambda: transformers.LlamaConfig(
            vocab_size=VOCABULARY, num_key_value_heads=2, num_labels=5, pad_token_id=pad, **TINY
        ),
        "gpt2": lambda: transformers.GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, num_labels=5, pad_token_id=pad
        ),
    }
    model = transformers.AutoModelForSequenceClassification.from_config(configs[kind]()).eval()
    teacher = SequenceClassifier(path=save(model, tmp_path), device="cpu").load()
    assert teacher.outputs == {"logits": Output(5, "single")}
    rows = [list(range(1, 20)), [5, 6, 7], list(range(40, 50)), [9, 8, 7]]
    together = teacher(batch(rows))["logits"]
    for i, row in enumerate(rows):
        with torch.no_grad():
            bare = model(input_ids=torch.tensor([row])).logits[0]
        torch.testing.assert_close(together[i], bare, rtol=1e-4, atol=1e-5)


def test_a_sequence_classifier_adds_the_special_tokens_of_its_own_tokenizer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=VOCABULARY, num_labels=5, **TINY)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    path = save(model, tmp_path)
    add_special_tokens(tmp_path, 90, 91)
    logits = SequenceClassifier(path=path, device="cpu").load()(batch([[7, 8], [9]]))["logits"]
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([[90, 7, 8, 91]])).logits[0]
    torch.testing.assert_close(logits[0], expected, rtol=1e-4, atol=1e-5)


def test_loading_and_calling_prints_and_warns_of_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = save(language_model("llama"), tmp_path)
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        teacher = CausalLM(path=path).load()
        tokens = batch([[1, 2, 3], [4, 5]])
        tokens.inputs["tokens"].setflags(write=False)
        teacher(tokens)
    assert capfd.readouterr() == ("", "")
