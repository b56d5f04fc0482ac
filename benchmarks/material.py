"""What benchmarks label: Python sources of this interpreter, a tokenizer trained on them, a language model.

The model's weights are random unless a directory is given: speed does not depend on what it says.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path

VOCABULARY = 4096


def corpus(folder: Path, megabytes: float) -> Path:
    """A folder with copies of standard library sources, up to that size, in the order of their names."""
    folder.mkdir(parents=True)
    left = int(megabytes * 1e6)
    for number, source in enumerate(sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))):
        if "site-packages" in source.parts:
            continue
        data = source.read_bytes()
        if len(data) > left:
            break
        (folder / f"{number:05d}-{source.name}").write_bytes(data)
        left -= len(data)
    return folder


def language_model(folder: Path, texts: Path, hidden: int = 192, layers: int = 4) -> Path:
    """A transformers directory: a Llama of random weights, and a tokenizer trained on the texts."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train([str(path) for path in sorted(texts.iterdir())[:200]], trainer)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=hidden,
            intermediate_size=hidden * 3,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 32,
            num_key_value_heads=hidden // 32,
            max_position_embeddings=512,
            tie_word_embeddings=True,
        )
    )
    # Larger output weights than at initialisation, for distributions about as sharp as a trained model's.
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(8.0)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
