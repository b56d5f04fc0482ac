"""A model with a tower for images and one for texts, as CLIP and SigLIP: a vector of each, in one space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pipeline.targets.errors import TeacherError
from pipeline.teachers.base import Batch, Output
from pipeline.teachers.devices import tensor
from pipeline.teachers.inputs import Layout, Pixels, SpecialTokens, normalisation, padded
from pipeline.teachers.pretrained import Pretrained, check_tokens, load_pretrained
from pipeline.teachers.weights import model_directory

if TYPE_CHECKING:
    import torch

Tower = Literal["image", "text"]

FULL_LENGTH = frozenset({"siglip", "siglip2"})
"""Model types whose texts are always padded to all positions, without a mask: they were trained so."""


class TwoTowers(Pretrained):
    """Two towers from a transformers directory. Heads: "image", of "pixels", and "text", of "tokens".

    Vectors are the projected ones, which are compared by cosine: what they are before they are scaled to a
    length of 1, unless that is asked for. Special tokens and bytes of images as for `encoder`.
    """

    kind: Literal["two_towers"] = "two_towers"
    """A model of images and texts."""

    towers: list[Tower] = Field(default=["image", "text"], min_length=1)
    """Which of them are asked; views need the inputs of these only."""

    normalize: bool = False
    """Whether vectors are scaled to a length of 1."""

    layout: Layout = "channels_first"
    """Whether an array of the corpus is [C, H, W] or [H, W, C]."""

    def load(self) -> TwoTowersTeacher:
        return TwoTowersTeacher(self)


class TwoTowersTeacher:
    """A loaded TwoTowers."""

    def __init__(self, config: TwoTowers) -> None:
        self.model, self.device, self.description = load_pretrained(config, "AutoModel")
        if not all(hasattr(self.model, f"get_{tower}_features") for tower in config.towers):
            raise TeacherError(
                f"{config.path} is a {type(self.model).__name__}, which has not the towers "
                f"{' and '.join(config.towers)}: use encoder"
            )
        self.config, folder = config, model_directory(config.path)
        self.description |= {"normalize": config.normalize, "layout": config.layout}
        self.special = SpecialTokens.of(folder)
        self.pixels = Pixels(normalisation(folder), config.layout, self.device, self.model.dtype)
        size = getattr(self.model.config, "projection_dim", None) or self.model.config.text_config.hidden_size
        self.outputs: dict[str, Output] = {
            tower: Output(int(size), "single", vector=True) for tower in config.towers
        }
        self.whole = self.model.config.model_type in FULL_LENGTH

    def __call__(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        """Vectors of each tower, float32 [views, D]."""
        import torch

        asked = {"image": self._image, "text": self._text}
        with torch.inference_mode():
            vectors: dict[str, torch.Tensor] = {
                tower: asked[tower](batch).float() for tower in self.config.towers
            }
            if self.config.normalize:
                return {name: torch.nn.functional.normalize(found, dim=-1) for name, found in vectors.items()}
            return vectors

    def _image(self, batch: Batch) -> torch.Tensor:
        return self._vectors(self.model.get_image_features(pixel_values=self.pixels.of(batch)))

    def _text(self, batch: Batch) -> torch.Tensor:
        said = self.model.config.text_config
        pad = getattr(said, "pad_token_id", None)
        width = int(said.max_position_embeddings) if self.whole else 0
        tokens, mask = padded(self.special.around(batch), pad if self.whole and pad is not None else 0, width)
        check_tokens(self.model.text_model, tokens)
        given: dict[str, Any] = {"input_ids": tensor(tokens, self.device)}
        if not self.whole and not mask.all():
            given["attention_mask"] = tensor(mask, self.device)
        return self._vectors(self.model.get_text_features(**given))

    @staticmethod
    def _vectors(found: Any) -> torch.Tensor:
        vectors: torch.Tensor = getattr(found, "pooler_output", found)
        return vectors
