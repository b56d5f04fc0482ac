"""What `benchmarks.label` labels: sources, photographs and models of random weights, made in a folder.

Speed does not depend on what a model says, but for how many classes a target keeps; the language model's
output weights are scaled so that it is about as sure as a trained one.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.job import LabelJob

VOCABULARY = 4096
SIDE = 256
"""Pixels of a photograph's side."""


def language_model(folder: Path, scale: float) -> LabelJob:
    """A Llama with the shape of SmolLM2-135M, all of its 49,152 classes included; threshold."""
    shape = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3}
    return llama(folder, 49_152, shape | heads, 10.0, megabytes=0.08 * scale, unit_bytes=2_000)


def tiny_language_model(folder: Path, scale: float) -> LabelJob:
    """A Llama of 4 layers and width 192, 4,096 classes: less work a token than a real teacher; threshold."""
    shape = {"hidden_size": 192, "intermediate_size": 576, "num_hidden_layers": 4, "num_attention_heads": 6}
    return llama(folder, VOCABULARY, shape, 8.0, megabytes=1.5 * scale, unit_bytes=60_000)


def llama(
    folder: Path, size: int, shape: dict[str, int], sharpness: float, megabytes: float, unit_bytes: int
) -> LabelJob:
    """A language model of `size` classes and random weights, its embeddings scaled by `sharpness`, on so many
    Python sources.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    texts = sources(folder / "corpus", megabytes, longest=unit_bytes // 2)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=size, max_position_embeddings=512, tie_word_embeddings=True, **shape)
    )
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(sharpness)
    model.save_pretrained(folder / "model")
    tokenizer(folder / "model", texts, size)
    return job(
        folder,
        corpus={"kind": "text", "urls": [str(texts)], "unit_bytes": unit_bytes},
        views={"kind": "token_windows", "tokenizer": str(folder / "model"), "length": 256},
        teacher={"kind": "causal_lm", "path": str(folder / "model"), "device": "cpu"},
        heads={"logits": {"kind": "threshold", "threshold": 0.02}},
    )


def image_classifier(folder: Path, scale: float) -> LabelJob:
    """ResNet-50 on JPEG files of 256 × 256 pixels, a random crop of each; dense."""
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    photographs(folder / "corpus", round(300 * scale))
    torch.manual_seed(0)
    ResNetForImageClassification(ResNetConfig(num_labels=1000)).save_pretrained(folder / "model")
    return job(
        folder,
        corpus={"kind": "images", "urls": [str(folder / "corpus")], "unit_bytes": 300_000},
        views={"kind": "images", "size": 224, "crop": {"kind": "random"}, "flip": 0.5, "dtype": "uint8"},
        teacher={"kind": "image_classifier", "path": str(folder / "model"), "device": "cpu"},
        heads={"logits": {"kind": "dense", "dtype": "float16"}},
        batching={"budget": 16},
    )


def text_encoder(folder: Path, scale: float) -> LabelJob:
    """A BERT of 6 layers and width 384 on Python sources, mean pooling; int8."""
    import torch
    from transformers import BertConfig, BertModel

    texts = sources(folder / "corpus", 0.9 * scale, longest=30_000)
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=384,
            intermediate_size=1536,
            num_hidden_layers=6,
            num_attention_heads=12,
        )
    ).save_pretrained(folder / "model")
    tokenizer(folder / "model", texts, VOCABULARY)
    return job(
        folder,
        corpus={"kind": "text", "urls": [str(texts)], "unit_bytes": 10_000},
        views={"kind": "token_windows", "tokenizer": str(folder / "model"), "length": 128},
        teacher={"kind": "encoder", "path": str(folder / "model"), "device": "cpu"},
        heads={"embedding": {"kind": "embedding", "dtype": "int8"}},
        batching={"budget": 2048},
    )


JOBS: dict[str, Callable[[Path, float], LabelJob]] = {
    "language_model": language_model,
    "image_classifier": image_classifier,
    "text_encoder": text_encoder,
    "tiny_language_model": tiny_language_model,
}
"""By name: makes all that the job needs in a folder; scale: of the corpus."""


def job(
    folder: Path,
    corpus: dict[str, Any],
    views: dict[str, Any],
    teacher: dict[str, Any],
    heads: dict[str, Any],
    batching: dict[str, Any] | None = None,
) -> LabelJob:
    """The job in the folder."""
    return LabelJob.model_validate(
        {
            "corpus": corpus,
            "views": views,
            "teacher": teacher,
            "store": {"url": str(folder / "store"), "heads": heads},
            "label": {"batching": batching or {}},
        }
    )


def sources(folder: Path, megabytes: float, longest: int) -> Path:
    """A folder with copies of standard library sources, up to that size, in the order of their names. None
    has more bytes than `longest`, or the unit with it might be the last one to end.
    """
    folder.mkdir(parents=True)
    left = int(megabytes * 1e6)
    for number, source in enumerate(sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))):
        if "site-packages" in source.parts:
            continue
        data = source.read_bytes()
        if len(data) > longest:
            continue
        if len(data) > left:
            break
        (folder / f"{number:05d}-{source.name}").write_bytes(data)
        left -= len(data)
    return folder


def photographs(folder: Path, count: int) -> None:
    """JPEG files: cuttings of the two photographs that come with scikit-learn."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    folder.mkdir(parents=True)
    whole, random = load_sample_images().images, np.random.default_rng(0)
    for number in range(count):
        image = whole[number % len(whole)]
        top, left = (int(random.integers(extent - SIDE)) for extent in image.shape[:2])
        Image.fromarray(image[top : top + SIDE, left : left + SIDE]).save(
            folder / f"{number:05d}.jpg", quality=90
        )


def tokenizer(folder: Path, texts: Path, size: int) -> None:
    """A byte-level BPE tokenizer trained on the texts. What it lacks in tokens is filled up with reserved
    ones, which no text has.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False)
    found.train([str(path) for path in sorted(texts.iterdir())[:200]], trainer)
    found.add_tokens([f"<|reserved_{number}|>" for number in range(size - found.get_vocab_size())])
    found.save(str(folder / "tokenizer.json"))
