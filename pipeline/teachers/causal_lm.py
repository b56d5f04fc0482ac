"""A causal language model of transformers as a teacher: the distribution of every next token."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import PositiveInt

from pipeline.targets.errors import TeacherError
from pipeline.teachers.base import Batch, Output
from pipeline.teachers.devices import tensor
from pipeline.teachers.logits import Logits, Projected, Projection, as_logits
from pipeline.teachers.packing import Packed, alike, pack, trial
from pipeline.teachers.pretrained import Pretrained, check_tokens, load_pretrained
from pipeline.teachers.tensor_parallel import Group

if TYPE_CHECKING:
    import torch


PROBE = 16
"""Tokens that a way of making logits is tried on."""


class CausalLM(Pretrained):
    """A causal language model from a transformers directory. Head: "logits"; input: "tokens"."""

    kind: Literal["causal_lm"] = "causal_lm"
    """A causal language model."""

    tensor_parallel: PositiveInt = 1
    """Devices of a node that the model is cut over, by transformers' own plan for its architecture."""

    def load(self) -> CausalLMTeacher:
        return CausalLMTeacher(self)


class CausalLMTeacher:
    """A loaded CausalLM. Its head's size is the width of the logits, often more than the tokenizer's ids."""

    def __init__(self, config: CausalLM, leads: bool = True) -> None:
        """leads: false in the processes that a tensor-parallel teacher starts."""
        self.group = Group(config) if config.tensor_parallel > 1 and leads else None
        self.model, self.device, self.description = load_pretrained(
            config, "AutoModelForCausalLM", tensor_parallel=config.tensor_parallel
        )
        head = self.model.get_output_embeddings()
        if head is None:
            raise TeacherError(f"{config.path} has no language-model head")
        self.outputs = {"logits": Output(int(head.weight.shape[0]), "next_token")}
        self.projection = find_projection(self.model)
        self._row: int | None = None

    def __call__(self, batch: Batch) -> Mapping[str, torch.Tensor | Logits]:
        """Logits [views, L, V] in the model's dtype, of its hidden states if `find_projection` says how."""
        tokens, mask = batch.inputs["tokens"], None
        check_tokens(self.model, tokens)
        if self._row is not None:
            return {"logits": self._packed(batch, self._row)}
        if int(batch.lengths.min()) < tokens.shape[1]:
            # Padding stands at the end, where causal attention cannot look; the mask is for models that do
            # more than attend. Without it, attention may take its faster kernels.
            mask = (np.arange(tokens.shape[1]) < batch.lengths[:, None]).astype(np.int64)
        if self.group is not None:
            return {"logits": self.group.compute(self.forward, tokens, mask)}
        return {"logits": self.forward(tokens, mask)}

    def pack(self, row: int) -> None:
        """See `Packs`. Tried on a few short views: what a model makes of them packed must be what it makes of
        each alone, as far as its dtype goes.
        """
        refused = f"{type(self.model).__name__} does not keep the views of a row apart"
        cure = "leave label.batching.packing out"
        if self.group is not None:
            raise TeacherError(f"a tensor-parallel teacher does not pack views: {cure}")
        said = self.model.config.get_text_config()
        views = trial(self.outputs["logits"].size, getattr(said, "max_position_embeddings", None))
        try:
            packed = self._packed(views, int(views.lengths[:2].sum())).whole().float()
        except Exception as error:
            raise TeacherError(f"{refused} ({type(error).__name__}: {error}): {cure}") from error
        for i, length in enumerate(views.lengths.tolist()):
            tokens = views.inputs["tokens"][i : i + 1, :length]
            alone = as_logits(self.forward(tokens, None)).whole()[0].float()
            if not alike(packed[i, :length], alone, self.model.dtype):
                raise TeacherError(f"{refused}: {cure}")
        self._row = row

    def _packed(self, batch: Batch, row: int) -> Packed:
        # Flash attention takes the lengths of documents of one row alone.
        rows = pack(batch, None if "flash" in str(self.model.config._attn_implementation) else row)
        logits = as_logits(self.forward(rows.tokens, None, rows.positions))
        return Packed(logits, tensor(rows.places, self.device))

    def forward(
        self,
        tokens: npt.NDArray[Any],
        mask: npt.NDArray[np.int64] | None,
        positions: npt.NDArray[np.int64] | None = None,
    ) -> torch.Tensor | Logits:
        """tokens, mask, positions: [views, L], the mask 1 where a token is, None if it is everywhere;
        positions, if they do not count from a row's start.
        """
        import torch

        given: dict[str, Any] = {"input_ids": tensor(tokens, self.device), "use_cache": False}
        if mask is not None:
            given["attention_mask"] = tensor(mask, self.device)
        if positions is not None:
            given["position_ids"] = tensor(positions, self.device)
        with torch.inference_mode():
            if self.projection is None:
                logits: torch.Tensor = self.model(**given).logits
                return logits
            return Projected(self.model.base_model(**given).last_hidden_state, self.projection)


def find_projection(model: Any) -> Projection | None:
    """How a causal language model makes logits of its backbone's last hidden states; None if not like that.

    Architectures scale and cap their logits in ways of their own, so what the configuration suggests is tried
    on a few tokens and believed only if it gives the model's own logits.
    """
    import torch

    head, backbone = model.get_output_embeddings(), model.base_model
    if not isinstance(head, torch.nn.Linear) or backbone is model:
        return None
    # Of a model that is cut over several devices, the head is put together again on each.
    weight, bias = (
        part.full_tensor() if hasattr(part, "full_tensor") else part for part in (head.weight, head.bias)
    )
    said = model.config.get_text_config()
    scales = [1.0]
    for name in ("logit_scale", "logits_scaling"):
        factor = getattr(said, name, None)
        if isinstance(factor, int | float) and factor not in (0, 1):
            scales += [float(factor), 1 / float(factor)]
    # A configured cap first: on small logits it hardly shows.
    caps = [cap for cap in [getattr(said, "final_logit_softcapping", None)] if cap] + [None]
    length = min(PROBE, getattr(said, "max_position_embeddings", PROBE))
    tokens = torch.arange(length, device=model.device)[None] % len(weight)
    with torch.inference_mode():
        expected = model(input_ids=tokens, use_cache=False).logits.float()
        hidden = getattr(backbone(input_ids=tokens, use_cache=False), "last_hidden_state", None)
        if hidden is None or hidden.shape[-1] != head.in_features:
            return None
        spread = float(expected.nan_to_num().std())
        tolerance = 1e-4 if weight.dtype == torch.float32 else 3e-2
        for cap, scale in itertools.product(caps, scales):
            projection = Projection(weight, bias, scale, cap)
            logits = projection(hidden).float()
            if torch.allclose(logits, expected, rtol=tolerance, atol=tolerance * spread, equal_nan=True):
                return projection
    return None
