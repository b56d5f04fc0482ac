"""Students that are causal language models of the transformers library. Knows nothing of stores and losses.

The library is imported when such a student is made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.targets.errors import ConfigError
from student import config


class CausalLM(nn.Module):
    """A transformers model as a map of one tensor: tokens int64 [B, L] -> logits [B, L, V].

    Rows are padded at the right and attention is causal, so no mask is needed. model: the library's own.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, L, V]; those of position i are for token i + 1."""
        logits: Tensor = self.model(input_ids=tokens, use_cache=False).logits
        return logits

    def write_config(self, folder: Path) -> None:
        """config.json and, of a model that has one, generation_config.json."""
        model: Any = self.model
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder)
        if model.can_generate():
            model.generation_config.save_pretrained(folder)


class HalvedCausalLM(CausalLM):
    """One whose logits are a matrix times its hidden states: those of some positions can be had alone."""

    def features(self, tokens: Tensor) -> Tensor:
        """Hidden states [B, L, width], which `head` maps to logits."""
        model: Any = self.model
        states: Tensor = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
        return states

    @property
    def head(self) -> nn.Module:
        """From hidden states to logits."""
        model: Any = self.model
        head: nn.Module = model.get_output_embeddings()
        return head


def load(model: config.Transformers, classes: int) -> CausalLM:
    """The configured model with float32 weights, for V classes where the configuration leaves that open.

    Only from this machine, and without code from the directory. Raises ConfigError for one that cannot be.
    """
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError as error:
        raise ConfigError(
            'model.kind transformers needs that library: pip install "decant-kd[transformers]"'
        ) from error
    if model.path is not None and not (Path(model.path) / "config.json").is_file():
        raise ConfigError(f"model.path {model.path} is no directory with a config.json")
    try:
        if model.path is None:
            found = AutoConfig.for_model(**{"vocab_size": classes, **model.config})
        else:
            found = AutoConfig.from_pretrained(model.path, local_files_only=True, **model.config)
        if model.pretrained:
            loaded = AutoModelForCausalLM.from_pretrained(
                model.path, config=found, local_files_only=True, use_safetensors=True, dtype=torch.float32
            )
        else:
            loaded = AutoModelForCausalLM.from_config(found, dtype=torch.float32)
    except (ValueError, OSError, RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"model: transformers cannot make it: {reason}") from error
    halved = HalvedCausalLM(loaded)
    return halved if _is_halved(halved) else CausalLM(loaded)


@torch.no_grad()
def _is_halved(model: HalvedCausalLM) -> bool:
    """Whether nothing stands between head and logits (a cap, a scale): tried on two tokens."""
    if model.head is None:
        return False
    was = model.training
    tokens = torch.tensor([[0, 1]])
    alike = torch.allclose(model.eval().head(model.features(tokens)), model(tokens), atol=1e-5)
    model.train(was)
    return alike
