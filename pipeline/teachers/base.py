"""What a teacher is: a frozen function from a batch of inputs to one tensor per head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from pipeline.config import Config
from pipeline.targets.spec import Positions

if TYPE_CHECKING:
    import torch

    from pipeline.teachers.logits import Logits


@dataclass(frozen=True)
class Output:
    """A head that a teacher offers. size: classes V, the width of its logits. padded: whether some members of
    an ensemble have more than these, which only logits beyond the tokenizer's ids may. likeliest: how many of
    the likeliest classes it tells, as `Likeliest`; None: logits of all. vector: whether its numbers are known
    to be features of a vector, and no logits.
    """

    size: int
    positions: Positions
    padded: bool = False
    likeliest: int | None = None
    vector: bool = False


@dataclass(frozen=True)
class Batch:
    """Inputs of several views, on the host.

    inputs: by name, [views, ...] padded with zeros at the end of the varying dimension;
    lengths: int64 [views], the true extent of that dimension (1 for fixed-size inputs).
    """

    inputs: Mapping[str, npt.NDArray[Any]]
    lengths: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.lengths)


class Teacher(Protocol):
    """A loaded teacher on its device. Calls may not change it, padding may not change a view's outputs."""

    @property
    def outputs(self) -> Mapping[str, Output]:
        """The heads, by name."""
        ...

    @property
    def description(self) -> Mapping[str, Any]:
        """For the spec: kind and "fingerprint" (of the weights), never a credential."""
        ...

    def __call__(self, batch: Batch) -> Mapping[str, torch.Tensor | Logits]:
        """By head: logits [views, V] for "single", [views, L, V] for "next_token", on the teacher's device;
        a tensor, or `Logits` that are computed when they are asked for.

        With "next_token", position i of a view holds the logits of its token i + 1; those at and beyond
        length - 1 are ignored.
        """
        ...


@runtime_checkable
class Packs(Protocol):
    """A teacher that can compute several views in one row, where nothing of one reaches another."""

    def pack(self, row: int) -> None:
        """Do so from now on, with rows of at most so many tokens; views stay in their order, in the batch and
        in what is returned. Raises TeacherError when the model mixes the views of a row.
        """
        ...


class TeacherConfig(Config, ABC):
    """The configuration that a teacher is loaded from, once per replica."""

    @abstractmethod
    def load(self) -> Teacher:
        """Raises UserError (a path that is no model) or TeacherError (it does not load or fit)."""
