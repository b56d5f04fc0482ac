"""Batches: rows of a window as torch tensors.

Knows tables and tensors, nothing of shards, orders or threads.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.targets.codecs import Dense, Embedding
from pipeline.targets.codecs.base import Array, Encoded, ranges
from pipeline.targets.decoded import Ints
from pipeline.targets.id_map import IdMap
from pipeline.targets.ragged import Ragged, offsets_of
from pipeline.targets.spec import LABEL, TOKENS, Head, Spec
from student.replay import Origin, Replayer
from student.table import Table, decode
from student.targets import TorchDense, TorchEmbedding, TorchTargets, to_torch


def has_labels(spec: Spec, head: str) -> bool:
    """Whether the store knows the true classes of the head's targets; embeddings have none."""
    wanted = LABEL if spec.head(head).positions == "single" else TOKENS
    return spec.head(head).codec.of == "logits" and any(item.name == wanted for item in spec.inputs)


@dataclass(frozen=True)
class Batch:
    """Some rows of a store.

    inputs: by name, [B, ...]; a varying first dimension is padded with zeros to the longest, [B, L, ...].
    Unsigned integers of two and more bytes come as int64, all else as stored; the ledger of views and their
    digests are left out. lengths: int64 [B], true extent of the first varying input (1 if none varies).
    counts: int64 [B], targets per row of each "next_token" head. row_index, position_index: int64 [N], where
    in a [B, L] batch those N targets are: `outputs[row_index, position_index]` is [N, ...].
    targets: by head, N targets for "next_token", B for "single". keys: the records' keys.
    """

    spec: Spec
    keys: Sequence[str]
    inputs: Mapping[str, Tensor]
    lengths: Tensor
    counts: Tensor
    row_index: Tensor
    position_index: Tensor
    targets: Mapping[str, TorchTargets]

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def nbytes(self) -> int:
        """Of inputs and targets."""
        fields = (value for targets in self.targets.values() for value in vars(targets).values())
        return sum(value.nbytes for value in (*self.inputs.values(), *fields) if isinstance(value, Tensor))

    def pick(self, outputs: Tensor, head: str) -> Tensor:
        """Outputs that have a target: [B, L, V] -> [N, V] for "next_token", else [B, V] as it is."""
        if self.spec.head(head).positions == "single":
            return outputs
        return outputs[self.row_index, self.position_index]

    def labels(self, head: str) -> Tensor | None:
        """int64 [N], the tokens that really came next; for a "single" head the input "label", if there is."""
        if not has_labels(self.spec, head):
            return None
        if self.spec.head(head).positions == "single":
            return self.inputs[LABEL].long()
        return self.inputs[TOKENS][self.row_index, self.position_index + 1].long()

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same on another device."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        return dataclasses.replace(
            self,
            inputs={name: move(tensor) for name, tensor in self.inputs.items()},
            lengths=move(self.lengths),
            counts=move(self.counts),
            row_index=move(self.row_index),
            position_index=move(self.position_index),
            targets={name: t.to(device, non_blocking) for name, t in self.targets.items()},
        )


@dataclass(frozen=True)
class Collator:
    """Makes batches of tables' rows. Several threads may use it.

    spec: of the batches. heads: those that are decoded. skipped: inputs that batches leave out.
    """

    spec: Spec
    heads: Sequence[str]
    skipped: frozenset[str] = frozenset()
    id_map: IdMap | None = None
    replayer: Replayer | None = None

    def __call__(self, table: Table, origins: Sequence[Origin], sizes: Sequence[int]) -> list[Batch]:
        """The rows as batches of so many. All are converted together, and batches are views of that: a call
        of NumPy or torch takes longer than a small batch's share of the work in it.

        Raises as `Replayer.render`.
        """
        rows = table.rows()
        if self.replayer is not None:
            rows = self.replayer.render(rows, origins)
        inputs = {
            name: self._input(name, rows.inputs[name]) for name in rows.inputs if name not in self.skipped
        }
        varying = [
            stored for name, stored in rows.inputs.items() if name in inputs and isinstance(stored, Ragged)
        ]
        lengths = torch.from_numpy(varying[0].lengths if varying else np.ones(len(rows), dtype=np.int64))
        counts = rows.targets.astype(np.int64)
        starts = offsets_of(np.asarray(sizes))
        targets = {name: self._targets(table.spec.head(name), rows.heads[name]) for name in self.heads}
        bounds = {"single": starts.tolist(), "next_token": offsets_of(counts)[starts].tolist()}
        batches = []
        for batch, (start, stop) in enumerate(pairwise(bounds["single"])):
            row_index, position_index = _places(counts[start:stop])
            batches.append(
                Batch(
                    spec=self.spec,
                    keys=rows.keys[start:stop],
                    inputs={name: _part(stored, start, stop) for name, stored in inputs.items()},
                    lengths=lengths[start:stop],
                    counts=torch.from_numpy(counts[start:stop]),
                    row_index=row_index,
                    position_index=position_index,
                    targets={
                        name: found.slice(*bounds[self.spec.head(name).positions][batch : batch + 2])
                        for name, found in targets.items()
                    },
                )
            )
        return batches

    def _input(self, name: str, stored: Array | Ragged) -> Tensor | Ragged:
        """A tensor [rows, ...] where all rows are alike."""
        if self.id_map is not None and name == TOKENS:
            stored = self.id_map.tokens(stored)
        if not isinstance(stored, Ragged):
            return _tensor(stored)
        lengths = stored.lengths
        if not bool((lengths == lengths[0]).all()):
            return stored
        return _tensor(stored.values.reshape(len(lengths), int(lengths[0]), *stored.values.shape[1:]))

    def _targets(self, head: Head, found: Encoded) -> TorchTargets:
        if self.id_map is not None:
            return to_torch(self.id_map.targets(decode(head, found), head))
        # torch widens float16 eighteen times as fast as NumPy.
        match head.codec:
            case Dense(dtype="float16"):
                return TorchDense(torch.from_numpy(found["logits"]).float())
            case Embedding(dtype="float16"):
                return TorchEmbedding(torch.from_numpy(found["vectors"]).float())
        return to_torch(decode(head, found))


def _places(counts: Ints) -> tuple[Tensor, Tensor]:
    """`Batch.row_index` and `Batch.position_index` of rows with so many targets."""
    if bool((counts == counts[0]).all()):
        return _alike(len(counts), int(counts[0]))
    rows = np.repeat(np.arange(len(counts)), counts)
    return torch.from_numpy(rows), torch.from_numpy(ranges(np.zeros_like(counts), counts))


@functools.lru_cache(maxsize=8)
def _alike(rows: int, targets: int) -> tuple[Tensor, Tensor]:
    """The same where all rows have as many: batch after batch, so they share it."""
    return torch.arange(rows).repeat_interleave(targets), torch.arange(targets).repeat(rows)


def _part(stored: Tensor | Ragged, start: int, stop: int) -> Tensor:
    """Rows start..stop; of rows that differ in length [rows, longest, ...], zeros after each row's items."""
    if isinstance(stored, Tensor):
        return stored[start:stop]
    bounds = stored.offsets[start : stop + 1].tolist()
    longest = max(after - before for before, after in pairwise(bounds))
    padded = np.zeros((stop - start, longest, *stored.values.shape[1:]), dtype=_widened(stored.values.dtype))
    for row, (first, last) in zip(padded, pairwise(bounds), strict=True):
        row[: last - first] = stored.values[first:last]
    return torch.from_numpy(padded)


def _tensor(array: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=_widened(array.dtype)))


def _widened(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Integers that torch has few kernels for become int64."""
    return np.dtype(np.int64) if dtype.kind == "u" and dtype.itemsize > 1 else dtype
