"""Image and sequence classifiers of transformers as teachers: one row of class logits a view."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.targets.errors import TeacherError
from pipeline.teachers.base import Batch, Output
from pipeline.teachers.devices import tensor
from pipeline.teachers.pretrained import Pretrained, check_tokens, load_pretrained
from pipeline.teachers.weights import model_directory

if TYPE_CHECKING:
    import torch

NO_TOKEN = -1  # a padding id that no view can hold


class ImageClassifier(Pretrained):
    """An image classifier from a transformers directory. Head: "logits"; input: one array, whatever its name.

    float32 arrays go to the model as they are. uint8 arrays are first rescaled and normalised as the
    directory's preprocessor_config.json says (divided by 255 if it has none). Sizes are never changed.
    """

    kind: Literal["image_classifier"] = "image_classifier"
    """An image classifier."""

    layout: Literal["channels_first", "channels_last"] = "channels_first"
    """Whether an array of the corpus is [C, H, W] or [H, W, C]."""

    def load(self) -> ImageClassifierTeacher:
        return ImageClassifierTeacher(self)


class ImageClassifierTeacher:
    """A loaded ImageClassifier."""

    def __init__(self, config: ImageClassifier) -> None:
        self.model, self.device, self.description = load_pretrained(config, "AutoModelForImageClassification")
        self.description["layout"] = config.layout
        self.outputs = {"logits": Output(int(self.model.config.num_labels), "single")}
        self.channels_last = config.layout == "channels_last"
        self.factor, self.mean, self.std = normalisation(model_directory(config.path))

    def __call__(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        """Logits [views, V] in the model's dtype."""
        import torch

        (array,) = batch.inputs.values()
        pixels = tensor(array, self.device)
        if self.channels_last:
            pixels = pixels.movedim(-1, 1)
        if pixels.dtype == torch.uint8:
            mean, std = (torch.tensor(v, device=self.device).view(-1, 1, 1) for v in (self.mean, self.std))
            pixels = (pixels.float() * self.factor - mean) / std
        with torch.inference_mode():
            return {"logits": self.model(pixel_values=pixels.to(self.model.dtype)).logits}


class SequenceClassifier(Pretrained):
    """A classifier of token sequences from a transformers directory. Head: "logits"; input: "tokens".

    A view is put between the special tokens that the directory's own tokenizer.json puts around a text
    (for example [CLS] and [SEP]): views have none, and such a model was trained with them.
    """

    kind: Literal["sequence_classifier"] = "sequence_classifier"
    """A sequence classifier."""

    def load(self) -> SequenceClassifierTeacher:
        return SequenceClassifierTeacher(self)


class SequenceClassifierTeacher:
    """A loaded SequenceClassifier."""

    def __init__(self, config: SequenceClassifier) -> None:
        self.model, self.device, self.description = load_pretrained(
            config, "AutoModelForSequenceClassification"
        )
        self.outputs = {"logits": Output(int(self.model.config.num_labels), "single")}
        self.before, self.after = special_tokens(model_directory(config.path))
        self.pads = getattr(self.model.config, "pad_token_id", None) is not None
        if not self.pads:
            self.model.config.pad_token_id = NO_TOKEN

    def __call__(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        """Logits [views, V] in the model's dtype."""
        import torch

        views = [
            np.concatenate([self.before, view[:length], self.after]).astype(np.int64)
            for view, length in zip(batch.inputs["tokens"], batch.lengths, strict=True)
        ]
        lengths = np.array([len(view) for view in views])
        with torch.inference_mode():
            if self.pads:
                return {"logits": self._forward(views)}
            # Models that look for the last token by the padding id, and have none, take equal lengths only.
            logits: torch.Tensor | None = None
            for length in np.unique(lengths):
                rows = np.flatnonzero(lengths == length)
                part = self._forward([views[i] for i in rows])
                if logits is None:
                    logits = part.new_empty(len(views), part.shape[1])
                logits[torch.from_numpy(rows).to(self.device)] = part
        if logits is None:
            raise TeacherError("a batch without views")
        return {"logits": logits}

    def _forward(self, views: list[npt.NDArray[np.int64]]) -> torch.Tensor:
        width = max(len(view) for view in views)
        tokens = np.full((len(views), width), self.model.config.pad_token_id, dtype=np.int64)
        mask = np.zeros_like(tokens)
        for i, view in enumerate(views):
            tokens[i, : len(view)], mask[i, : len(view)] = view, 1
        check_tokens(self.model, tokens)
        given = {} if mask.all() else {"attention_mask": tensor(mask, self.device)}
        logits: torch.Tensor = self.model(input_ids=tensor(tokens, self.device), **given).logits
        return logits


def normalisation(folder: str) -> tuple[float, list[float], list[float]]:
    """Factor, means and deviations of preprocessor_config.json: a pixel x becomes (x·factor - mean) / std."""
    path = os.path.join(folder, "preprocessor_config.json")
    said: dict[str, Any] = {}
    if os.path.isfile(path):
        with open(path, "rb") as file:
            said = json.load(file)
    factor = float(said.get("rescale_factor", 1 / 255)) if said.get("do_rescale", True) else 1.0
    if not said.get("do_normalize", "image_mean" in said):
        return factor, [0.0], [1.0]
    return factor, list(said.get("image_mean", [0.5])), list(said.get("image_std", [0.5]))


def special_tokens(folder: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Ids that the directory's tokenizer puts before and after a text; none without a tokenizer.json."""
    from tokenizers import Tokenizer

    path = os.path.join(folder, "tokenizer.json")
    if not os.path.isfile(path):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    tokenizer = Tokenizer.from_file(path)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    encoding = tokenizer.encode("a")
    ids = np.array(encoding.ids, dtype=np.int64)
    text = np.flatnonzero(np.array(encoding.special_tokens_mask) == 0)
    if len(text) == 0:
        raise TeacherError(
            f"the tokenizer in {folder} gives no token for a letter: its special tokens are unknown"
        )
    return ids[: text[0]], ids[text[-1] + 1 :]
