"""Classifiers of images, sounds and token sequences, of transformers: one row of class logits a view."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from pipeline.teachers.base import Batch, Output
from pipeline.teachers.devices import tensor
from pipeline.teachers.inputs import (
    Layout,
    Pixels,
    SpecialTokens,
    by_length,
    normalisation,
    padded,
    sound_by_length,
)
from pipeline.teachers.pretrained import Pretrained, check_tokens, load_pretrained
from pipeline.teachers.weights import model_directory

if TYPE_CHECKING:
    import torch

NO_TOKEN = -1  # a padding id that no view can hold


class ImageClassifier(Pretrained):
    """An image classifier from a transformers directory. Head: "logits"; input: "pixels", or the only array.

    float32 arrays go to the model as they are. uint8 arrays are first rescaled and normalised as the
    directory's preprocessor_config.json says (divided by 255 if it has none). Sizes are never changed.
    """

    kind: Literal["image_classifier"] = "image_classifier"
    """An image classifier."""

    layout: Layout = "channels_first"
    """Whether an array of the corpus is [C, H, W] or [H, W, C]."""

    def load(self) -> ImageClassifierTeacher:
        return ImageClassifierTeacher(self)


class ImageClassifierTeacher:
    """A loaded ImageClassifier."""

    def __init__(self, config: ImageClassifier) -> None:
        self.model, self.device, self.description = load_pretrained(config, "AutoModelForImageClassification")
        self.description["layout"] = config.layout
        self.outputs = {"logits": Output(int(self.model.config.num_labels), "single")}
        folder = model_directory(config.path)
        self.pixels = Pixels(normalisation(folder), config.layout, self.device, self.model.dtype)

    def __call__(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        """Logits [views, V] in the model's dtype."""
        import torch

        with torch.inference_mode():
            return {"logits": self.model(pixel_values=self.pixels.of(batch)).logits}


class AudioClassifier(Pretrained):
    """An audio classifier from a transformers directory. Head: "logits"; input: "audio", or the only array.

    The array is what the model is trained on, float32: a waveform [samples] (wav2vec 2.0, HuBERT, WavLM) or a
    spectrogram [bands, frames] (Whisper, AST). Views make it; the teacher scales nothing.
    """

    kind: Literal["audio_classifier"] = "audio_classifier"
    """An audio classifier."""

    frames_first: bool = False
    """Whether the model takes spectrograms as [frames, bands], as AST does."""

    def load(self) -> AudioClassifierTeacher:
        return AudioClassifierTeacher(self)


class AudioClassifierTeacher:
    """A loaded AudioClassifier."""

    def __init__(self, config: AudioClassifier) -> None:
        self.model, self.device, self.description = load_pretrained(config, "AutoModelForAudioClassification")
        self.frames_first = config.frames_first
        self.description["frames_first"] = config.frames_first
        self.outputs = {"logits": Output(int(self.model.config.num_labels), "single")}

    def __call__(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        """Logits [views, V] in the model's dtype."""
        name = self.model.main_input_name

        def forward(sound: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.model(**{name: sound}).logits
            return logits

        return {"logits": sound_by_length(batch, self.device, self.model.dtype, forward, self.frames_first)}


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
        self.special = SpecialTokens.of(model_directory(config.path))
        self.pads = getattr(self.model.config, "pad_token_id", None) is not None
        if not self.pads:
            self.model.config.pad_token_id = NO_TOKEN

    def __call__(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        """Logits [views, V] in the model's dtype."""
        import torch

        views = self.special.around(batch)
        with torch.inference_mode():
            if self.pads:
                return {"logits": self._forward(views)}
            # Models that look for the last token by the padding id, and have none, take equal lengths only.
            lengths = np.array([len(view) for view in views])
            return {"logits": by_length(lengths, lambda rows: self._forward([views[i] for i in rows]))}

    def _forward(self, views: list[npt.NDArray[np.int64]]) -> torch.Tensor:
        tokens, mask = padded(views, self.model.config.pad_token_id)
        check_tokens(self.model, tokens)
        given = {} if mask.all() else {"attention_mask": tensor(mask, self.device)}
        logits: torch.Tensor = self.model(input_ids=tensor(tokens, self.device), **given).logits
        return logits
