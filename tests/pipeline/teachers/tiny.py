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


def add_special_tokens(folder: Path, first: int, last: int) -> None:
    """A tokenizer in the directory that puts these two around every text."""
    from tokenizers import Tokenizer, models, processors

    vocabulary = {"a": 1, "[UNK]": 2, "[CLS]": first, "[SEP]": last}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.add_special_tokens(["[CLS]", "[SEP]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", first), ("[SEP]", last)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
