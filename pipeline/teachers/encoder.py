"""An encoder of transformers as a teacher of embeddings: one vector a text, image or sound."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.targets.errors import TeacherError, UserError
from pipeline.teachers.base import Batch, Output
from pipeline.teachers.devices import tensor
from pipeline.teachers.inputs import Layout, Pixels, SpecialTokens, normalisation, padded, sound_by_length
from pipeline.teachers.pretrained import Pretrained, check_tokens, load_pretrained
from pipeline.teachers.weights import model_directory

if TYPE_CHECKING:
    import torch


class Encoder(Pretrained):
    """A transformers directory as an encoder, whatever head it was saved with. Head: "embedding".

    What it reads is what the model is of: "tokens" (BERT, ModernBERT, T5's encoder, a decoder that embeds),
    "pixels" (ViT, DINOv2, ResNet) or "audio" (wav2vec 2.0, Whisper's encoder). Tokens are put between the
    special tokens of the directory's tokenizer.json; bytes of an image are normalised as its
    preprocessor_config.json says; sound goes in as the views made it.
    """

    kind: Literal["encoder"] = "encoder"
    """An encoder of texts, images or sounds."""

    pooling: Literal["mean", "cls", "last"] = "mean"
    """How hidden states become one vector: their mean over all positions but padding, special tokens among
    them, as sentence-transformers does; the first position ([CLS]); or the last one (decoders that embed)."""

    layer: int | None = None
    """The hidden layer: 0 is the embeddings, -1 the last, before a norm that some models put behind it. By
    default the model's last hidden state."""

    normalize: bool = False
    """Whether vectors are scaled to a length of 1."""

    layout: Layout = "channels_first"
    """Of images: whether an array of the corpus is [C, H, W] or [H, W, C]."""

    frames_first: bool = False
    """Of sounds: whether the model takes spectrograms as [frames, bands], as AST does."""

    def load(self) -> EncoderTeacher:
        return EncoderTeacher(self)


class EncoderTeacher:
    """A loaded Encoder."""

    def __init__(self, config: Encoder) -> None:
        # What a checkpoint of a model with a head lacks is the backbone's pooler, which is not asked.
        model, self.device, self.description = load_pretrained(config, "AutoModel", unused=("pooler.",))
        self.model = model.get_encoder() if model.config.is_encoder_decoder else model
        self.config, self.input = config, str(self.model.main_input_name)
        self.description |= {
            "pooling": config.pooling,
            "layer": config.layer,
            "normalize": config.normalize,
        }
        folder = model_directory(config.path)
        if self.input == "input_ids":
            self.special = SpecialTokens.of(folder)
        elif self.input == "pixel_values":
            self.description["layout"] = config.layout
            self.pixels = Pixels(normalisation(folder), config.layout, self.device, self.model.dtype)
        else:
            self.description["frames_first"] = config.frames_first
        self.outputs = {"embedding": Output(self._size(), "single", vector=True)}

    def __call__(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        """Vectors, float32 [views, D]."""
        import torch

        with torch.inference_mode():
            if self.input == "input_ids":
                vectors = self._of_tokens(batch)
            elif self.input == "pixel_values":
                vectors = self._pooled(self._hidden(pixel_values=self.pixels.of(batch)))
            else:
                vectors = sound_by_length(
                    batch,
                    self.device,
                    self.model.dtype,
                    lambda sound: self._pooled(self._hidden(**{self.input: sound})),
                    self.config.frames_first,
                )
            if self.config.normalize:
                vectors = torch.nn.functional.normalize(vectors, dim=-1)
            return {"embedding": vectors}

    def _of_tokens(self, batch: Batch) -> torch.Tensor:
        views = self.special.around(batch)
        tokens, mask = padded(views, getattr(self.model.config, "pad_token_id", None) or 0)
        check_tokens(self.model, tokens)
        given = {} if mask.all() else {"attention_mask": tensor(mask, self.device)}
        hidden = self._hidden(input_ids=tensor(tokens, self.device), **given)
        return self._pooled(hidden, tensor(mask, self.device))

    def _hidden(self, **given: torch.Tensor) -> torch.Tensor:
        """[views, positions, D], of images' maps [views, D, H, W] too."""
        layer = self.config.layer
        wanted: dict[str, Any] = {} if layer is None else {"output_hidden_states": True}
        output = self.model(**given, **wanted)
        try:
            hidden: torch.Tensor = output.last_hidden_state if layer is None else output.hidden_states[layer]
        except IndexError as error:
            raise UserError(
                f"teacher.layer {layer} is not there: the model has {len(output.hidden_states)} hidden "
                "layers, 0 being its embeddings"
            ) from error
        return hidden if hidden.ndim == 3 else hidden.flatten(2).transpose(1, 2)

    def _pooled(self, hidden: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """float32 [views, D]. mask: int64 [views, positions], 1 where something is, at the beginning."""
        import torch

        if self.config.pooling == "cls":
            return hidden[:, 0].float()
        if mask is None:
            return hidden.float().mean(dim=1) if self.config.pooling == "mean" else hidden[:, -1].float()
        counts = mask.sum(dim=1)
        if self.config.pooling == "last":
            return hidden[torch.arange(len(hidden), device=hidden.device), counts - 1].float()
        return (hidden.float() * mask[..., None]).sum(dim=1) / counts[:, None]

    def _size(self) -> int:
        said = self.model.config.get_text_config() if self.input == "input_ids" else self.model.config
        size = getattr(said, "hidden_size", None)
        if size is None and self.config.layer is None:
            size = np.ravel(getattr(said, "hidden_sizes", [])).tolist()[-1:]
            size = size[0] if size else None
        if size is None:
            raise TeacherError(
                f"the configuration of {self.config.path} has no hidden_size: leave teacher.layer out, or "
                "use kind: torch"
            )
        return int(size)
