"""What a training run tells: a few frozen records, for whoever draws or stores them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Score:
    """Means over held-out targets.

    loss: the distillation loss; hard_loss: cross-entropy on the labels in nats, and accuracy: share of them
    that the student puts first, both None where the store has no labels. targets: how many there were.
    """

    loss: float
    hard_loss: float | None
    accuracy: float | None
    targets: int

    @property
    def value(self) -> float:
        """What "best" is judged by, lower is better: the labels' cross-entropy, without labels the loss."""
        return self.loss if self.hard_loss is None else self.hard_loss


@dataclass(frozen=True)
class Started:
    """The run begins, or goes on after `step`. rows: of an epoch; held_out: rows that are only evaluated."""

    step: int
    steps: int
    parameters: int
    rows: int
    held_out: int
    ranks: int
    device: str


@dataclass(frozen=True)
class Checked:
    """Some of the store was looked at before the first step (`pipeline.targets.plausibility`) and is sound.

    own, before, after: mean log-likelihood, under the targets, of the tokens that they are for and of their
    neighbours, nats; None where there are no next tokens.
    """

    step: int
    shards: int
    rows: int
    targets: int
    own: float | None
    before: float | None
    after: float | None


@dataclass(frozen=True)
class Step:
    """An optimiser step. loss: mean over its targets, before the update; gradient_norm: before clipping.

    epoch: passes over the training rows so far. Rates are over the time since the report before, evaluations
    and checkpoints apart. flops_per_second: of forward and backward passes, by the operations that a target
    took in the first batch; utilisation: that, as a share of what the devices can do (`student.flops.peak`).
    Of several students that share the time, the shares add up.
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    epoch: float
    rows_per_second: float
    targets_per_second: float
    flops_per_second: float
    utilisation: float


@dataclass(frozen=True)
class Evaluated:
    """The held-out rows after a step. best: better than ever before in this run."""

    step: int
    score: Score
    best: bool


@dataclass(frozen=True)
class Failed:
    """One of several students cannot be trained on, for that reason; the others go on without it."""

    step: int
    reason: str


@dataclass(frozen=True)
class Finished:
    """All steps are done; `checkpoint` holds the last. score: of the last evaluation, if there was one."""

    step: int
    checkpoint: Path
    score: Score | None


Event = Started | Checked | Step | Evaluated | Failed | Finished
