"""A teacher without a model, for tests: logits that anyone can compute again, and failures on demand."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import NonNegativeFloat, PositiveInt

from pipeline.targets.spec import Positions
from pipeline.teachers.base import Batch, Output, TeacherConfig

if TYPE_CHECKING:
    import torch

ROWS = 64  # distinct rows of logits


class Fake(TeacherConfig):
    """Logits as a function of the input's values alone: for testing a job without a model."""

    kind: Literal["fake"] = "fake"
    """No model."""

    size: PositiveInt
    """Classes of the head "logits"."""

    positions: Positions = "next_token"
    """"next_token": logits for each token. "single": one row for each view."""

    seed: int = 0
    """Seed of the logits."""

    seconds_per_view: NonNegativeFloat = 0.0
    """How long it sleeps for each view, as a real model would compute."""

    raise_on: int | None = None
    """A batch with a view that holds this value raises RuntimeError, as an accelerator that fails."""

    nan_on: int | None = None
    """The logits of a view that holds this value are NaN."""

    exit_on: int | None = None
    """A view that holds this value ends the process at once, as kill -9 would."""

    exit_marker: str | None = None
    """With exit_on: a file made just before; where it exists the process lives, so it ends once only."""

    def load(self) -> FakeTeacher:
        return FakeTeacher(self)


class FakeTeacher:
    """A loaded Fake."""

    def __init__(self, config: Fake) -> None:
        self.config = config
        self.outputs = {"logits": Output(config.size, config.positions)}
        self.table = np.random.default_rng(config.seed).normal(0, 3, (ROWS, config.size)).astype(np.float32)
        text = f"{config.size} {config.positions} {config.seed}"
        self.description = {"kind": config.kind, "fingerprint": hashlib.sha256(text.encode()).hexdigest()}

    def logits(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """What it says of one view: [L, V], row i by token i; or [V], by the sum of the values."""
        if self.config.positions == "next_token":
            return self.table[values.astype(np.int64) % ROWS]
        row: npt.NDArray[np.float32] = self.table[int(values.astype(np.float64).sum()) % ROWS]
        return row

    def __call__(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        import torch

        config = self.config
        (values,) = batch.inputs.values()
        views = [view[:length] if view.ndim == 1 else view for view, length in _views(batch, values)]
        time.sleep(config.seconds_per_view * len(batch))
        if _holds(config.exit_on, views) and not (config.exit_marker and os.path.exists(config.exit_marker)):
            if config.exit_marker:
                with open(config.exit_marker, "w") as marker:
                    marker.write(str(os.getpid()))
            os._exit(1)
        if _holds(config.raise_on, views):
            raise RuntimeError(f"the fake teacher was told to fail on {config.raise_on}")
        logits = (
            self.logits(values)
            if config.positions == "next_token"
            else np.stack([self.logits(v) for v in views])
        )
        for i, view in enumerate(views):
            if _holds(config.nan_on, [view]):
                logits[i] = np.nan
        return {"logits": torch.from_numpy(logits)}


def _views(batch: Batch, values: npt.NDArray[Any]) -> list[tuple[npt.NDArray[Any], int]]:
    return list(zip(values, batch.lengths.tolist(), strict=True))


def _holds(value: int | None, views: list[npt.NDArray[Any]]) -> bool:
    return value is not None and any(bool((view == value).any()) for view in views)
