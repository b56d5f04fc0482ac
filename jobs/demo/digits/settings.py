"""What the digits leg is set to; the defaults are the demo."""

from __future__ import annotations

from pydantic import Field, PositiveFloat, PositiveInt

from jobs.demo.digits.images import Jitter
from jobs.demo.digits.networks import Architecture
from jobs.demo.results import Settings
from pipeline.config import Config

INPUT, HEAD = "image", "logits"
"""The names in the store."""

MEMBER_SEED, TRANSFER_SEED, STUDENT_SEED = 1_000, 2_000, 3_000
"""Where the seeds of each part begin, so that no two parts share their draws."""


class DigitsSettings(Config):
    """What the leg does; the defaults are the demo."""

    test_share: float = Field(default=0.3, gt=0, lt=1)
    """Share of the digits held out for the test."""

    split_seed: int = 1
    """Seed of the split."""

    members: list[Architecture] = Field(default=["cnn", "cnn", "cnn", "mlp"], min_length=1)
    """Networks of the teacher."""

    member_steps: PositiveInt = 500
    """Optimiser steps of each."""

    member_learning_rate: PositiveFloat = 5e-3
    """Peak of their learning rate."""

    jitter: Jitter = Jitter()
    """Of every jittered digit, whoever learns from it."""

    transfer_digits: PositiveInt = 30_000
    """Unlabelled digits, and jittered ones of whoever learns from labels."""

    label_share: float = Field(default=0.03, gt=0, le=1)
    """The few labels, as a share of the training labels."""

    bottleneck: PositiveInt = 32
    """Width of the student's linear bottleneck."""

    hidden: PositiveInt = 800
    """Width of its hidden layer."""

    temperature: PositiveFloat = 4.0
    """T of the tempered targets."""

    student_steps: PositiveInt = 1000
    """Optimiser steps of every student."""

    student_learning_rate: PositiveFloat = 1e-2
    """Peak of their learning rate."""

    batch_rows: PositiveInt = 128
    """Digits of an optimiser step; fewer if there are not so many."""

    seeds: PositiveInt = 3
    """Students of each kind: other initial weights, other order, other few labels."""

    def flat(self) -> Settings:
        """For the report: one level, lists as text."""
        flat: Settings = {}
        for name, value in self.model_dump().items():
            if isinstance(value, dict):
                flat |= {f"{name}.{key}": item for key, item in value.items()}
            else:
                flat[name] = ", ".join(value) if isinstance(value, list) else value
        return flat
