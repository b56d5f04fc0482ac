"""What a linear bottleneck saves: training steps of one shallow net with and without it, in turns."""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import nn

from jobs.recipes.cifar10 import SIDE
from jobs.recipes.shallow import shallow

if TYPE_CHECKING:
    from jobs.recipes.mimic import StudentSettings

ROUNDS = 15


def speed_up(student: StudentSettings, bottleneck: int, hidden: int) -> dict[str, float]:
    """Median seconds of a step with and without, how many times as fast the bottleneck is, and both nets'
    weights. One after the other in each round, so that whatever else the machine does falls on both.
    """
    torch.manual_seed(0)
    nets = {
        "with": shallow(student.channels, student.pool, bottleneck, hidden),
        "without": shallow(student.channels, student.pool, None, hidden),
    }
    optimizers = {
        name: torch.optim.AdamW(net.parameters(), student.learning_rate) for name, net in nets.items()
    }
    images = torch.randint(256, (student.batch_rows, 3, SIDE, SIDE), dtype=torch.uint8)
    targets = torch.randn(student.batch_rows, 10)
    seconds: dict[str, list[float]] = {name: [] for name in nets}
    for _ in range(ROUNDS):
        for name, net in nets.items():
            began = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=student.precision == "bfloat16"):
                logits = net(images)
            torch.autograd.backward(nn.functional.mse_loss(logits.float(), targets))
            optimizers[name].step()
            optimizers[name].zero_grad()
            seconds[name].append(time.perf_counter() - began)
    took = {name: median(values[2:]) for name, values in seconds.items()}  # the first two warm up
    weights = {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()}
    return {
        **{f"step seconds {name} bottleneck": value for name, value in took.items()},
        **{f"weights {name} bottleneck": float(value) for name, value in weights.items()},
        "bottleneck's speed-up": took["without"] / took["with"],
    }
