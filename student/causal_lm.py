"""Students that are causal language models of the transformers library. Knows nothing of stores and losses.

The library is imported when such a student is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    """One whose logits are `logits` of its hidden states: those of some positions can be had alone.

    logit_scale: 1 unless the library's configuration says it, as Cohere's does, or divides by it, as
    Granite's. logit_softcap: Gemma's, None without one. Both as in `student.losses.LinearLogits`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        config: Any = model.config
        scale, divisor = getattr(config, "logit_scale", None), getattr(config, "logits_scaling", None)
        self.logit_scale: float = scale or 1 / (divisor or 1)
        self.logit_softcap: float | None = getattr(config, "final_logit_softcapping", None)

    def features(self, tokens: Tensor) -> Tensor:
        """Hidden states [B, L, width], which `head` maps to logits."""
        model: Any = self.model
        states: Tensor = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
        return states

    @property
    def head(self) -> nn.Linear:
        """From hidden states to logits."""
        model: Any = self.model
        head: nn.Linear = model.get_output_embeddings()
        return head

    def logits(self, states: Tensor) -> Tensor:
        """Of hidden states [..., width]."""
        logits: Tensor = self.logit_scale * self.head(states)
        cap = self.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    @property
    def plain(self) -> bool:
        """Whether the head is all that stands between hidden states and logits."""
        return self.logit_scale == 1 and self.logit_softcap is None

    @contextmanager
    def heading(self, instead: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """While entered, a plain model of the library gives what `instead` makes of its states as logits."""
        head = self.head
        before = head.forward
        head.forward = instead  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            head.forward = before  # type: ignore[method-assign]


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
    return halved(loaded) or whole


@torch.no_grad()
def _sees_ahead(model: CausalLM) -> bool:
    """Whether what is said of a token depends on the next one: tried on two rows that begin alike."""
    was = model.training
    first, second = model.eval()(torch.tensor([[0, 0], [0, 1]]))[:, 0]
    model.train(was)
    return not torch.allclose(first, second, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def halved(model: nn.Module) -> HalvedCausalLM | None:
    """A model of the library in two halves; None where the head is no plain nn.Linear, or something else than
    a scale and a cap stands between it and the logits.

    Tried on two tokens, as it is and with a head so large that a cap shows: Gemma's, at 30, leaves the logits
    of new weights as they are.
    """
    embeddings: Any = getattr(model, "get_output_embeddings", lambda: None)
    if type(embeddings()) is not nn.Linear:
        return None
    found = HalvedCausalLM(model)
    was = found.training
    found.eval()
    alike = _alike(found)
    found.head.weight.mul_(LARGE)
    alike = alike and _alike(found)
    found.head.weight.div_(LARGE)
    found.train(was)
    return found if alike else None


def _alike(model: HalvedCausalLM) -> bool:
    """Whether the halves give the whole's logits of two tokens."""
    tokens = torch.tensor([[0, 1]], device=model.head.weight.device)
    try:
        return torch.allclose(model.logits(model.features(tokens)), model(tokens), rtol=1e-4, atol=1e-6)
    except (RuntimeError, AttributeError):
        return False  # what the head is given are not the last hidden states
