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

LARGE = 2.0**12
"""A power of two, so that multiplied and divided by it weights are the same to the bit."""


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

    Only from this machine, and without code from the directory. Raises ConfigError for one that cannot be,
    and for one that is not causal.
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
    except (ValueError, OSError, RuntimeError, TypeError, AttributeError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"model: transformers cannot make it: {reason}") from error
    if _sees_ahead(whole := CausalLM(loaded)):
        raise ConfigError(
            f"model: a {found.model_type} of this configuration sees the tokens that it is to predict: "
            "choose one whose attention is causal"
        )
    halved = HalvedCausalLM(loaded)
    return halved if _is_halved(halved) else whole


@torch.no_grad()
def _sees_ahead(model: CausalLM) -> bool:
    """Whether what is said of a token depends on the next one: tried on two rows that begin alike."""
    was = model.training
    first, second = model.eval()(torch.tensor([[0, 0], [0, 1]]))[:, 0]
    model.train(was)
    return not torch.allclose(first, second, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def _is_halved(model: HalvedCausalLM) -> bool:
    """Whether nothing stands between head and logits (a cap, a scale): tried on two tokens.

    With a head so large that a cap shows: Gemma's, at 30, leaves the logits of new weights as they are.
    """
    weight = getattr(model.head, "weight", None)
    if weight is None:
        return False
    was = model.training
    model.eval()
    tokens = torch.tensor([[0, 1]])
    weight.mul_(LARGE)
    try:
        return torch.allclose(model.head(model.features(tokens)), model(tokens), rtol=1e-4)
    except (RuntimeError, AttributeError):
        return False  # what the head is given are not the last hidden states
    finally:
        weight.div_(LARGE)
        model.train(was)
