"""A batch's views as transformers models take them: tokens between special ones, pixels, sound.

It knows what a model's directory says of its own input, its special tokens and how bytes become its pixels.
How a view was cut, scaled to a size or turned into a spectrogram is the views' business.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.targets.errors import TeacherError, UserError
from pipeline.targets.spec import TOKENS
from pipeline.teachers.base import Batch
from pipeline.teachers.devices import tensor

if TYPE_CHECKING:
    import torch

PIXELS, SOUND = "pixels", "audio"
"""Names of the inputs that hold an image and a sound, where a view has more than one input."""

Layout = Literal["channels_first", "channels_last"]
"""[C, H, W] or [H, W, C]."""


def only(batch: Batch, name: str) -> npt.NDArray[Any]:
    """The input of that name, or the only one there is. Raises UserError where it is not clear."""
    if name in batch.inputs:
        return batch.inputs[name]
    others = [other for other in batch.inputs if other != TOKENS]
    if len(others) != 1:
        raise UserError(f"the teacher looks for the input {name!r}, and a view has {sorted(batch.inputs)}")
    return batch.inputs[others[0]]


def tokens_of(batch: Batch) -> npt.NDArray[Any]:
    """Token ids [views, L]. Raises UserError for views without."""
    if TOKENS not in batch.inputs:
        raise UserError(f"the teacher reads tokens, and a view has {sorted(batch.inputs)}: use token_windows")
    return batch.inputs[TOKENS]


@dataclass(frozen=True)
class SpecialTokens:
    """Ids that a model's own tokenizer puts before and after a text, for example [CLS] and [SEP]. int64 [n].

    Views have none, and a model of texts was trained with them.
    """

    before: npt.NDArray[np.int64]
    after: npt.NDArray[np.int64]

    @classmethod
    def of(cls, folder: str) -> SpecialTokens:
        """As the directory's tokenizer.json says; none without one. Raises TeacherError if it is unclear."""
        from tokenizers import Tokenizer

        path = os.path.join(folder, "tokenizer.json")
        if not os.path.isfile(path):
            return cls(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
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
        return cls(ids[: text[0]], ids[text[-1] + 1 :])

    def around(self, batch: Batch) -> list[npt.NDArray[np.int64]]:
        """Each view's tokens, without padding, between them."""
        return [
            np.concatenate([self.before, view[:length], self.after]).astype(np.int64)
            for view, length in zip(tokens_of(batch), batch.lengths, strict=True)
        ]


def padded(
    views: Sequence[npt.NDArray[np.int64]], pad: int, width: int = 0
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Tokens as one array, padded at the end to the longest or to `width`, and the mask: 1 on what is there.

    int64 [views, L] both.
    """
    extent = max(width, *(len(view) for view in views))
    tokens = np.full((len(views), extent), pad, dtype=np.int64)
    mask = np.zeros_like(tokens)
    for i, view in enumerate(views):
        tokens[i, : len(view)], mask[i, : len(view)] = view, 1
    return tokens, mask


def by_length(
    lengths: npt.NDArray[np.int64], forward: Callable[[npt.NDArray[np.int64]], torch.Tensor]
) -> torch.Tensor:
    """`forward` of the views of each length, by their places, as one tensor [views, …] in their order: for
    models that padding would change.
    """
    import torch

    out: torch.Tensor | None = None
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        part = forward(rows)
        if out is None:
            out = part.new_empty(len(lengths), *part.shape[1:])
        out[torch.from_numpy(rows).to(out.device)] = part
    if out is None:
        raise TeacherError("a batch without views")
    return out


Scaling = tuple[float, list[float], list[float]]
"""Factor, and means and deviations of the channels (one stands for all)."""


class Pixels:
    """Images as a model takes them.

    float32 arrays stay as they are. Of uint8 arrays, a pixel x becomes (x·factor - mean) / std. Sizes are
    never changed.
    """

    def __init__(self, scaling: Scaling, layout: Layout, device: torch.device, dtype: torch.dtype) -> None:
        self.layout, self.device, self.dtype = layout, device, dtype
        self.factor, self.mean, self.std = scaling

    def of(self, batch: Batch) -> torch.Tensor:
        """[views, C, H, W] in the model's dtype. Raises UserError for views without an image."""
        import torch

        pixels = tensor(only(batch, PIXELS), self.device)
        if pixels.ndim != 4:
            raise UserError(
                f"the teacher sees images of three dimensions, and a view is {list(pixels.shape[1:])}: "
                "correct views.shape"
            )
        if self.layout == "channels_last":
            pixels = pixels.movedim(-1, 1)
        if pixels.dtype == torch.uint8:
            mean, std = (torch.tensor(v, device=self.device).view(-1, 1, 1) for v in (self.mean, self.std))
            pixels = (pixels.float() * self.factor - mean) / std
        return pixels.to(self.dtype)


def normalisation(folder: str) -> Scaling:
    """As the directory says, in processor_config.json, where transformers 5 saves it, or in
    preprocessor_config.json; a division by 255 if it has neither.
    """
    said = _json(folder, "preprocessor_config.json")
    said = _json(folder, "processor_config.json").get("image_processor", said)
    factor = float(said.get("rescale_factor", 1 / 255)) if said.get("do_rescale", True) else 1.0
    if not said.get("do_normalize", "image_mean" in said):
        return factor, [0.0], [1.0]
    return factor, list(said.get("image_mean", [0.5])), list(said.get("image_std", [0.5]))


def _json(folder: str, name: str) -> dict[str, Any]:
    """What the file says; nothing without one."""
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
        return {}
    with open(path, "rb") as file:
        found: dict[str, Any] = json.load(file)
    return found


def sound_by_length(
    batch: Batch,
    device: torch.device,
    dtype: torch.dtype,
    forward: Callable[[torch.Tensor], torch.Tensor],
    frames_first: bool = False,
) -> torch.Tensor:
    """`forward` of the views' sounds, [n, samples] or [n, bands, frames], as one tensor [views, …].
    frames_first: give it spectrograms as [n, frames, bands].

    Sounds of different lengths are never padded together: a model that normalises over time would hear the
    silence. Raises UserError for a sound that is not float32.
    """
    import torch

    sound = only(batch, SOUND)
    if sound.dtype != np.float32:
        raise UserError(
            f"the teacher hears float32 waveforms or spectrograms, and a view is {sound.dtype}: let the "
            "views scale it"
        )
    # Only an input whose extent varies is counted by the lengths; of others these are 1.
    varies = int(batch.lengths.max()) == sound.shape[1]
    lengths = batch.lengths if varies else np.full(len(batch), sound.shape[1])

    def part(rows: npt.NDArray[np.int64]) -> torch.Tensor:
        some = sound[rows, : int(lengths[rows[0]])]
        heard = tensor(np.ascontiguousarray(some), device).to(dtype)
        return forward(heard.transpose(1, 2) if frames_first else heard)

    with torch.inference_mode():
        return by_length(np.asarray(lengths), part)
