"""A tiny causal language model with a tokenizer, in a transformers directory, and a change to it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tests.byte_level import byte_level

SENTENCES = (
    "the duck swims on a pond and dives for weeds while geese graze where grass is short near water swans "
    "build large nests of reeds at its edge heron stands still then strikes fish frog or eel in shallow mud"
)
"""What the tokenizer was trained on."""

SIZE = 400
"""Tokens."""


def llama(size: int) -> Any:
    """Two layers of random weights, always the same, large enough for its distributions to differ."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.35)
    return model


def make_llama(folder: Path) -> Path:
    """Model and tokenizer, of SIZE tokens."""
    llama(SIZE).save_pretrained(folder)
    byte_level([SENTENCES] * 3, SIZE).save(str(folder / "tokenizer.json"))
    return folder


def change_a_layer(original: Path, folder: Path, by: float = 0.1) -> Path:
    """The same model but for noise on one layer's matrix. by: its share of the matrix's spread."""
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(original)
    torch.manual_seed(1)
    with torch.no_grad():
        weight = model.model.layers[1].mlp.down_proj.weight
        weight += by * weight.std() * torch.randn_like(weight)
    model.save_pretrained(folder)
    shutil.copy(original / "tokenizer.json", folder)
    return folder
