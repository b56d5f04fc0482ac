"""A language model of transformers that sees an image, as a teacher: each next token of a text, given it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.targets.errors import TeacherError, UserError
from pipeline.teachers.base import Batch, Output
from pipeline.teachers.devices import tensor
from pipeline.teachers.inputs import Layout, Pixels, SpecialTokens, normalisation, tokens_of
from pipeline.teachers.pretrained import Pretrained, check_tokens, load_pretrained
from pipeline.teachers.weights import model_directory

if TYPE_CHECKING:
    import torch


SEVERAL_IMAGES = frozenset({"idefics2", "idefics3", "smolvlm"})
"""Model types that take [views, images, C, H, W]."""


class ImageText(Pretrained):
    """An image-text-to-text model from a transformers directory. Head: "logits"; inputs: "pixels", "tokens".

    The teacher reads what its tokenizer puts before a text (a begin token), then the image, then the view's
    tokens; it is asked for the tokens alone, so the image's places take no targets and no bytes. Whatever
    else a model expects around them, such as a question, is text of the view. For models that take one image
    [C, H, W] as it is (LLaVA, Idefics 3, SmolVLM, …), not those that cut it into crops of their own.
    """

    kind: Literal["image_text"] = "image_text"
    """A language model that sees an image."""

    layout: Layout = "channels_first"
    """Whether an array of the corpus is [C, H, W] or [H, W, C]."""

    def load(self) -> ImageTextTeacher:
        return ImageTextTeacher(self)


class ImageTextTeacher:
    """A loaded ImageText."""

    def __init__(self, config: ImageText) -> None:
        self.model, self.device, self.description = load_pretrained(config, "AutoModelForImageTextToText")
        self.description["layout"] = config.layout
        self.image_token = getattr(self.model.config, "image_token_id", None)
        head = self.model.get_output_embeddings()
        if self.image_token is None or head is None:
            raise TeacherError(
                f"{config.path} is a {type(self.model).__name__}, whose image has no token to stand for it, "
                "or which has no language-model head: use kind: torch"
            )
        folder = model_directory(config.path)
        self.before = SpecialTokens.of(folder).before
        self.pixels = Pixels(normalisation(folder), config.layout, self.device, self.model.dtype)
        self.outputs = {"logits": Output(int(head.weight.shape[0]), "next_token")}
        self._places: dict[tuple[int, ...], int] = {}

    def __call__(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        """Logits [views, L, V] of the views' tokens, in the model's dtype."""
        import torch

        pixels, text = self.pixels.of(batch), tokens_of(batch).astype(np.int64)
        if (text == self.image_token).any():
            raise UserError(
                f"a view holds the token {self.image_token}, which stands for the image: leave the image's "
                "place out of the text"
            )
        with torch.inference_mode():
            pixels, places = self._image(pixels)
            ahead = np.concatenate([self.before, np.full(places, self.image_token)])
            tokens = np.concatenate([np.tile(ahead, (len(text), 1)), text], axis=1)
            check_tokens(self.model, tokens)
            given: dict[str, Any] = {"use_cache": False}
            if int(batch.lengths.min()) < text.shape[1]:
                mask = np.arange(tokens.shape[1]) < (batch.lengths + len(ahead))[:, None]
                given["attention_mask"] = tensor(mask.astype(np.int64), self.device)
            output = self.model(
                input_ids=tensor(tokens, self.device),
                pixel_values=pixels,
                logits_to_keep=text.shape[1],
                **given,
            )
        return {"logits": output.logits}

    def _image(self, pixels: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Images in the shape that the model takes, and how many tokens it makes of one."""
        shape = tuple(pixels.shape[1:])
        if self.model.config.model_type in SEVERAL_IMAGES:
            pixels = pixels[:, None]
        if shape not in self._places:
            found = self.model.get_image_features(pixel_values=pixels[:1])
            features = getattr(found, "pooler_output", found)
            self._places[shape] = sum(int(one.numel()) // int(one.shape[-1]) for one in features)
        return pixels, self._places[shape]
