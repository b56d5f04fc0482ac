"""What is told of a distribution when only its likeliest classes are: these, and the mass of all others.

A teacher that is served elsewhere does not send its logits. The tail is then one less the sum of what was
sent, which the store's spec says ("tail": "from_sum").
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipeline.targets.codecs.base import NonFiniteLogits
from pipeline.targets.codecs.ranking import Ranked
from pipeline.teachers.logits import Logits

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Likeliest(Logits):
    """The k likeliest classes at each place, likeliest first.

    ids: int64 [views, L, k]; log_probs: float64 [views, L, k], -inf for one without probability, NaN where
    the teacher gave no number; own: float64 [views, L], the log-probability of the token that really came.
    classes: V.
    """

    ids: npt.NDArray[np.int64]
    log_probs: npt.NDArray[np.float64]
    own: npt.NDArray[np.float64]
    classes: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.ids.shape[:-1], self.classes)

    @property
    def device(self) -> torch.device:
        import torch

        return torch.device("cpu")

    def ranked(self, chosen: npt.NDArray[np.int64], k: int) -> Ranked:
        """The first k classes of some places, [n], and the tail's mass at beta 1: of the other betas, and of
        slopes, nothing is known. Raises NonFiniteLogits.
        """
        ids, log_probs, tail = self._at(chosen, k)
        bad = np.isnan(log_probs).any(axis=1) | ~np.isfinite(log_probs[:, 0])
        if bad.any():
            raise NonFiniteLogits(bad)
        return Ranked(ids, log_probs, tail[:, None], np.zeros_like(tail[:, None]))

    def rows(self, chosen: torch.Tensor) -> torch.Tensor:
        """Log-probabilities, float32 [n, V], the tail's mass spread evenly over its classes: of all that fit
        what was told the distribution that says least. For looking at; codecs take `ranked`.
        """
        import torch

        ids, log_probs, tail = self._at(chosen.cpu().numpy(), self.ids.shape[-1])
        others = self.classes - ids.shape[1]
        share = tail - np.log(max(others, 1))
        out = np.repeat(share[:, None], self.classes, axis=1)
        np.put_along_axis(out, ids, log_probs, axis=1)
        return torch.from_numpy(out.astype(np.float32))

    def first(self, classes: int) -> Likeliest:
        """What is told of a class behind them is left out, and its mass has no part any more; in its place
        stands a class of probability 0.
        """
        beyond = self.ids >= classes
        if not beyond.any():
            return replace(self, classes=classes)
        lost = np.where(beyond, np.exp(self.log_probs), 0.0).sum(axis=-1)
        with np.errstate(divide="ignore"):
            scale = np.log1p(-np.minimum(lost, 1.0))
        kept = np.where(beyond, -np.inf, self.log_probs - scale[..., None])
        order = np.argsort(-kept, axis=-1, kind="stable")[..., :classes]
        ids = np.take_along_axis(np.where(beyond, classes, self.ids), order, axis=-1)
        for place in zip(*np.nonzero(beyond.any(axis=-1)), strict=True):
            free = np.setdiff1d(np.arange(classes), ids[place])[::-1]
            missing = ids[place] == classes
            ids[place][missing] = free[: missing.sum()]
        return Likeliest(ids, np.take_along_axis(kept, order, axis=-1), self.own - scale, classes)

    def _at(
        self, chosen: npt.NDArray[np.int64], k: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """ids and log_probs [n, k], and the log of the mass of all other classes, [n]."""
        width = self.ids.shape[-1]
        ids = self.ids.reshape(-1, width)[chosen, :k]
        log_probs = self.log_probs.reshape(-1, width)[chosen, :k]
        total = np.exp(log_probs).sum(axis=1)
        # What adds up to more than one by rounding is scaled to one; without other classes, so is all.
        scale = np.maximum(total, 1.0) if k < self.classes else np.where(total > 0, total, 1.0)
        with np.errstate(divide="ignore"):
            tail = np.log1p(-np.minimum(total / scale, 1.0))
        return ids, log_probs - np.log(scale)[:, None], tail
