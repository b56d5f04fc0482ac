"""What a view is: the input that the teacher sees of a record, and that a student must see again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config import Config
from pipeline.corpus.base import Record
from pipeline.targets.spec import Input, Vocabulary


@dataclass(frozen=True)
class View:
    """One view of a record. inputs: by name, one row's array of the declared shape and dtype, also of what is
    only recorded; size: its share of a batch's budget (tokens, or 1 for a fixed-size input).
    """

    inputs: Mapping[str, npt.NDArray[Any]]
    size: int


class Rejected(Exception):
    """The record has no view: code and reason as in `Quarantined`."""

    def __init__(self, code: str, reason: str) -> None:
        self.code, self.reason = code, reason
        super().__init__(reason)


class Renderer(ABC):
    """Records to views, ready to work (its tokenizer is loaded)."""

    inputs: tuple[Input, ...]
    """What the teacher sees, and the store keeps where it keeps inputs."""
    recorded: tuple[Input, ...] = ()
    """What the store keeps of each view in any case, and nobody is shown."""
    reach: int = 0
    """How many records before its own in its unit a view may be mixed with."""
    vocabulary: Vocabulary | None
    description: Mapping[str, Any]
    """For the spec: kind, parameters and "fingerprint"."""

    @abstractmethod
    def render(self, record: Record, earlier: Sequence[Record] = ()) -> list[View]:
        """At least one view, in order. earlier: the `reach` records before it in its unit, or as many as
        there are. Raises Rejected.
        """


class Views(Config, ABC):
    """The configuration that a renderer is loaded from."""

    @abstractmethod
    def load(self) -> Renderer:
        """Raises UserError when, for example, the tokenizer cannot be read."""


def stack(views: list[View], name: str) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """One input of several views as a batch, padded with zeros, and each view's length, int64 [views]."""
    arrays = [view.inputs[name] for view in views]
    lengths = np.array([len(a) if a.ndim else 1 for a in arrays], dtype=np.int64)
    if len({a.shape for a in arrays}) == 1:
        return np.stack(arrays), lengths
    padded = np.zeros((len(arrays), int(lengths.max()), *arrays[0].shape[1:]), dtype=arrays[0].dtype)
    for i, array in enumerate(arrays):
        padded[i, : len(array)] = array
    return padded, lengths
