"""Hinton's teachers: dropout nets that learn the labels of jittered digits. No store, no distillation.

A run that is killed goes on from its last checkpoint and ends with the weights it would have had: what an
epoch draws follows from the seed and its number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from jobs.recipes.mnist import Digits
from jobs.recipes.networks import DropoutNet, jittered
from jobs.recipes.precision import Precision
from pipeline.config import Config
from pipeline.targets.errors import ConfigError
from student.checkpoint import Checkpoints, training_tensors, weights
from student.distributed import World
from student.optimizer import make_moments


class TeacherSettings(Config):
    """A teacher and its training."""

    hidden: list[PositiveInt] = Field(default=[1200, 1200], min_length=1)
    """Widths of the hidden layers."""

    dropout: float = Field(default=0.5, ge=0, lt=1)
    """Share of the hidden units that is dropped."""

    shift_pixels: NonNegativeInt = 2
    """How far a digit may be moved along either axis."""

    max_norm: PositiveFloat = 3.0
    """Largest norm of a hidden unit's incoming weights."""

    epochs: PositiveInt = 80
    """Passes over the training digits."""

    batch_rows: PositiveInt = 250
    """Digits of a step."""

    learning_rate: PositiveFloat = 1e-3
    """Adam's at the start; it falls to nothing by half a cosine."""

    checkpoint_epochs: PositiveInt = 5
    """Between checkpoints."""

    precision: Precision = "bfloat16"
    """Of the products (autocast); weights and sums stay float32."""


def teach(
    folder: Path, digits: Digits, settings: TeacherSettings, seed: int, progress: Callable[[int, float], None]
) -> Path:
    """The checkpoint of a trained teacher in `folder`. progress: is told the epochs done and the last loss.

    Raises ConfigError where the folder has one of other settings.
    """
    torch.manual_seed(seed)
    net = DropoutNet(settings.hidden, settings.dropout).train()
    optimizer = torch.optim.Adam(net.parameters(), settings.learning_rate, fused=True)
    make_moments(optimizer)
    images, labels = torch.from_numpy(digits.images.copy()), torch.from_numpy(digits.labels)
    steps = math.ceil(len(images) / settings.batch_rows)
    world = World(0, 1, torch.device("cpu"))
    checkpoints, asked, done = Checkpoints(folder, world), {**settings.model_dump(), "seed": seed}, 0
    if (found := checkpoints.read()) is not None:
        if found.config != asked:
            raise ConfigError(f"{folder} has a teacher of other settings: choose another --output")
        found.resume(training_tensors(net, optimizer), world)
        done = found.state["epoch"]
    loss = math.nan
    progress(done, loss)
    for epoch in range(done, settings.epochs):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        torch.manual_seed(generator.initial_seed())
        order = torch.randperm(len(images), generator=generator)
        for step, chosen in enumerate(torch.split(order, settings.batch_rows), start=epoch * steps):
            rate = 0.5 * (1 + math.cos(math.pi * step / (steps * settings.epochs)))
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * rate
            moved = jittered(images[chosen], settings.shift_pixels, generator)
            with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bfloat16"):
                logits = net(moved)
            value = F.cross_entropy(logits.float(), labels[chosen])
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(value)
            optimizer.step()
            net.constrain(settings.max_norm)
        loss = float(value.detach())
        if (epoch + 1) % settings.checkpoint_epochs == 0 or epoch + 1 == settings.epochs:
            checkpoints.save(
                epoch + 1,
                weights(net),
                training_tensors(net, optimizer),
                {"epoch": epoch + 1},
                asked,
                best=False,
                accompany=lambda _: None,
            )
        progress(epoch + 1, loss)
    return folder / "last"
