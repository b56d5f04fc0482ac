"""An exponential moving average of a model's weights. Knows nothing of training; buffers are not averaged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """Of every parameter, in its own dtype and, where it is sharded, in the same parts.

    After step t it is a ← d a + (1 − d) w with d = min(decay, (1 + t) / (10 + t)): the first steps, when the
    average would mostly be the initial weights, count for more (as in tf.train.ExponentialMovingAverage).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._parameters = dict(model.named_parameters())
        self.weights: dict[str, Tensor] = {
            name: parameter.detach().clone() for name, parameter in self._parameters.items()
        }
        """The average, by the parameter's name."""

    def update(self, step: int) -> None:
        """Takes in the weights after a step, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            get_ema_multi_avg_fn(decay)(  # type: ignore[no-untyped-call]
                list(self.weights.values()), list(self._parameters.values()), step
            )

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While entered, the model has the averaged weights. Costs the memory of one more parameter."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        # By value: a sharded parameter's storage is known to others, who would miss a new one.
        for name, parameter in self._parameters.items():
            kept = parameter.clone()
            parameter.copy_(self.weights[name])
            self.weights[name].copy_(kept)
