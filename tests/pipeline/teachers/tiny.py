"""Tiny models of random weights in transformers directories, and batches for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.teachers import Batch

VOCABULARY = 97
TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def enlarge(model: Any) -> Any:
    """The model in evaluation mode, its weights large enough for differences to show."""
    import torch

    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def towers(kind: str) -> Any:
    """A model of two towers, "clip" or "siglip", for images of 8 × 8."""
    import transformers

    text = {"vocab_size": VOCABULARY, "max_position_embeddings": 16, **TINY}
    vision = {"image_size": 8, "patch_size": 4, **TINY}
    if kind == "clip":
        text |= {"eos_token_id": 91, "bos_token_id": 90, "projection_dim": 24}
        config: Any = transformers.CLIPConfig(
            text_config=text, vision_config=vision | {"projection_dim": 24}, projection_dim=24
        )
    else:
        config = transformers.SiglipConfig(text_config=text | {"pad_token_id": 1}, vision_config=vision)
    return enlarge(transformers.AutoModel.from_config(config))


def seeing(kind: str) -> Any:
    """A language model that sees an image of 8 × 8, "llava" or "smolvlm". Token 96 stands for the image."""
    import transformers

    text = {"model_type": "llama", "vocab_size": VOCABULARY, "num_key_value_heads": 2, **TINY}
    vision = {"image_size": 8, "patch_size": 4, **TINY}
    if kind == "llava":
        config: Any = transformers.LlavaConfig(
            text_config=text,
            vision_config={"model_type": "clip_vision_model", **vision},
            image_token_index=96,
        )
    else:
        config = transformers.SmolVLMConfig(
            text_config=text, vision_config=vision, image_token_id=96, scale_factor=2, pad_token_id=0
        )
    return enlarge(transformers.AutoModelForImageTextToText.from_config(config))


def save(model: Any, folder: Path) -> str:
    model.save_pretrained(folder)
    return str(folder)


def token_batch(rows: Sequence[Sequence[int]], **others: npt.NDArray[Any]) -> Batch:
    """Rows of tokens, padded as batches are, and other inputs beside them."""
    lengths = np.array([len(row) for row in rows])
    tokens = np.zeros((len(rows), lengths.max()), dtype=np.uint16)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    return Batch({"tokens": tokens, **others}, lengths)


def array_batch(array: npt.NDArray[Any], name: str = "pixels") -> Batch:
    """Views of a fixed shape."""
    return Batch({name: array}, np.ones(len(array), dtype=np.int64))


def add_special_tokens(folder: Path, first: int, last: int, words: Sequence[str] = ("a",)) -> None:
    """A tokenizer in the directory, of words from 1 on, that puts these two around every text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: i for i, word in enumerate([*words, "[UNK]"], 1)} | {"[CLS]": first, "[SEP]": last}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["[CLS]", "[SEP]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", first), ("[SEP]", last)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
