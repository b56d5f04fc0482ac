"""How a network of the digits leg is trained, whoever teaches it. Knows no store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

Examples = Iterator[tuple[Tensor, Any]]
"""Endless (images uint8 [B, 8, 8], what they should give) of optimiser steps."""

Loss = Callable[[Tensor, Any], Tensor]
"""(logits [B, 10], what they should be) -> a scalar."""


def shuffled(images: Tensor, targets: Tensor, batch_rows: int, seed: int) -> Examples:
    """Epoch after epoch, each in another order."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for chosen in torch.split(torch.randperm(len(images), generator=generator), batch_rows):
            yield images[chosen], targets[chosen]


def fit(
    make: Callable[[], nn.Module], examples: Examples, loss: Loss, steps: int, learning_rate: float, seed: int
) -> nn.Module:
    """A network trained by AdamW with one cycle of the learning rate, ready to be asked."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make().train()
        optimizer = torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=1e-4, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
        for images, targets in islice(examples, steps):
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss(network(images), targets))
            optimizer.step()
            schedule.step()
    return network.eval()
