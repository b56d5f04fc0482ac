"""What the text leg is set to; the defaults are the demo."""

from __future__ import annotations

from pydantic import Field, PositiveFloat, PositiveInt

from jobs.demo.results import Settings
from jobs.demo.teacher import TeacherSettings
from pipeline.config import Config

HEAD = "logits"
"""The teacher's head that is kept."""


class StudentSettings(Config):
    """The students and their training."""

    width: PositiveInt = 64
    """Width of the residual stream."""

    layers: PositiveInt = 2
    """Transformer blocks."""

    heads: PositiveInt = 4
    """Attention heads."""

    steps: PositiveInt = 400
    """Optimiser steps."""

    batch_rows: PositiveInt = 4
    """Windows of a step."""

    learning_rate: PositiveFloat = 2e-3
    """Its peak: of 1.5e-3 to 2e-2, over two or three seeds, the best for either student."""

    evaluations: PositiveInt = 5
    """How often each is evaluated on the held-out shards."""


class TextSettings(Config):
    """What the leg does; the defaults are the demo."""

    teacher_bytes: PositiveInt = 6_000_000
    """Sources that tokenizer and teacher learn from."""

    labelled_bytes: PositiveInt = 2_400_000
    """Other sources, that the teacher labels."""

    unit_bytes: PositiveInt = 32_000
    """Sources of a unit, which becomes a shard."""

    teacher: TeacherSettings = TeacherSettings()
    """Tokenizer and teacher."""

    threshold: float = Field(default=0.1, gt=0, lt=1)
    """λ of the threshold codec: probabilities from it up are stored, the rest is sampled."""

    replicas: PositiveInt = 2
    """Replicas of the teacher, of one CPU each."""

    kill: bool = True
    """Whether to kill one of them."""

    kill_after: float = Field(default=0.4, gt=0, lt=1)
    """Share of the units after which it is killed."""

    holdout: float = Field(default=0.1, gt=0, lt=1)
    """Share of the shards that students never see."""

    student: StudentSettings = StudentSettings()
    """The students."""


def miniature() -> TextSettings:
    """The same in seconds. Its teacher knows next to nothing, so it shows that all runs, and nothing else."""
    return TextSettings(
        teacher_bytes=300_000,
        labelled_bytes=150_000,
        unit_bytes=8_000,
        teacher=TeacherSettings(
            vocabulary=512, width=32, layers=1, heads=2, hidden=64, length=64, steps=30, seconds=20
        ),
        threshold=0.2,
        student=StudentSettings(width=16, layers=1, heads=2, steps=20, evaluations=2),
    )


def flat(settings: Config) -> Settings:
    """For the results: one level, dotted keys."""
    out: Settings = {}
    for name, value in settings.model_dump().items():
        if isinstance(value, dict):
            out |= {f"{name}.{key}": item for key, item in value.items()}
        else:
            out[name] = value
    return out
