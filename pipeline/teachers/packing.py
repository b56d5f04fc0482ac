"""Several views in one row of a causal language model's forward pass, none of which sees another.

It knows tokens, positions and logits by rows. A position that starts again at 0 begins another document, and
transformers makes a block-diagonal mask of that, or the lengths that flash attention's kernels take. That a
model heeds them is tried, not assumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.targets.codecs.base import ranges
from pipeline.targets.errors import ConfigError
from pipeline.teachers.base import Batch, Packs, Teacher, TeacherConfig
from pipeline.teachers.logits import Logits

if TYPE_CHECKING:
    import torch

Ids = npt.NDArray[np.int64]

TRIED = (7, 4, 9, 2)
"""Lengths of the views that packing is tried on."""


@dataclass(frozen=True)
class Rows:
    """Packed views. tokens, positions: [rows, L], a row's end filled with tokens 0 that each stand alone;
    places: [views, L of the batch], where a view's token i is in the flattened tokens; 0 beyond its length.
    """

    tokens: npt.NDArray[Any]
    positions: Ids
    places: Ids


def pack(batch: Batch, capacity: int | None) -> Rows:
    """The views in their order, each behind the last one if the row then has at most `capacity` tokens, else
    at the start of the next; None: all in one row.
    """
    tokens, lengths = batch.inputs["tokens"], batch.lengths
    row, start, extent, used = 0, [], 0, 0
    rows = []
    for length in lengths.tolist():
        if used and capacity is not None and used + length > capacity:
            row, used = row + 1, 0
        rows.append(row)
        start.append(used)
        used += length
        extent = max(extent, used)
    first = np.array(rows) * extent + np.array(start)
    view, position = np.repeat(np.arange(len(lengths)), lengths), ranges(np.zeros_like(lengths), lengths)
    places = np.zeros(tokens.shape, dtype=np.int64)
    places[view, position] = first[view] + position
    filled = np.zeros((row + 1) * extent, dtype=tokens.dtype)
    positions = np.zeros(len(filled), dtype=np.int64)
    filled[places[view, position]] = tokens[view, position]
    positions[places[view, position]] = position
    return Rows(filled.reshape(-1, extent), positions.reshape(-1, extent), places)


@dataclass(frozen=True)
class Packed(Logits):
    """The logits of a batch whose views were packed. inner: of the rows; places: as in `Rows`."""

    inner: Logits
    places: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.places.shape, self.inner.shape[-1])

    @property
    def device(self) -> torch.device:
        return self.inner.device

    def rows(self, chosen: torch.Tensor) -> torch.Tensor:
        return self.inner.rows(self.places.flatten()[chosen.to(self.device)])

    def first(self, classes: int) -> Packed:
        return Packed(self.inner.first(classes), self.places)


def load_packing(config: TeacherConfig, row: int | None) -> Teacher:
    """The teacher; given a row, one that packs views into it. Raises as `load` and `Packs.pack`, ConfigError
    when teachers of its kind do not pack.
    """
    teacher = config.load()
    if row is not None:
        if not isinstance(teacher, Packs):
            raise ConfigError(
                f'label.batching.packing: a teacher of kind "{getattr(config, "kind", "")}" does not pack '
                "views, only a causal_lm does: leave it out"
            )
        teacher.pack(row)
    return teacher


def trial(classes: int, longest: int | None) -> Batch:
    """Views of different lengths and tokens, as many as fill two rows. longest: positions of the model."""
    lengths = np.array([min(length, longest or length) for length in TRIED])
    tokens = np.zeros((len(lengths), int(lengths.max())), dtype=np.int64)
    for i, length in enumerate(lengths.tolist()):
        tokens[i, :length] = (1 + 31 * i + 7 * np.arange(length)) % classes
    return Batch({"tokens": tokens}, lengths)


def alike(found: torch.Tensor, alone: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether a view's logits, float32 [L, V], are those it has alone but for rounding in that dtype.

    By their distance as a whole, ‖found - alone‖ over ‖alone - its mean‖: other kernels round otherwise in
    every layer, and of a million logits some one is far off.
    """
    import torch

    tolerance = 1e-3 if dtype == torch.float32 else 5e-2
    return bool((found - alone).norm() <= tolerance * (alone - alone.mean()).norm())
