"""A causal language model of transformers as a teacher: the distribution of every next token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.targets.errors import TeacherError
from pipeline.teachers.base import Batch, Output
from pipeline.teachers.devices import tensor
from pipeline.teachers.pretrained import Pretrained, check_tokens, load_pretrained

if TYPE_CHECKING:
    import torch


class CausalLM(Pretrained):
    """A causal language model from a transformers directory. Head: "logits"; input: "tokens"."""

    kind: Literal["causal_lm"] = "causal_lm"
    """A causal language model."""

    def load(self) -> CausalLMTeacher:
        return CausalLMTeacher(self)


class CausalLMTeacher:
    """A loaded CausalLM. Its head's size is the width of the logits, often more than the tokenizer's ids."""

    def __init__(self, config: CausalLM) -> None:
        self.model, self.device, self.description = load_pretrained(config, "AutoModelForCausalLM")
        head = self.model.get_output_embeddings()
        if head is None:
            raise TeacherError(f"{config.path} has no language-model head")
        self.outputs = {"logits": Output(int(head.weight.shape[0]), "next_token")}

    def __call__(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        """Logits [views, L, V] in the model's dtype."""
        import torch

        check_tokens(self.model, batch.inputs["tokens"])
        tokens = tensor(batch.inputs["tokens"], self.device)
        given: dict[str, Any] = {}
        if int(batch.lengths.min()) < tokens.shape[1]:
            # Padding stands at the end, where causal attention cannot look; the mask is for models that do
            # more than attend. Without it, attention may take its faster kernels.
            mask = np.arange(tokens.shape[1]) < batch.lengths[:, None]
            given["attention_mask"] = tensor(mask.astype(np.int64), self.device)
        with torch.inference_mode():
            return {"logits": self.model(input_ids=tokens, use_cache=False, **given).logits}
