"""How good a student is on rows it never saw. Knows nothing of optimisers or checkpoints."""

from __future__ import annotations

import itertools
import math
from typing import Literal

import torch
from torch import Tensor

from pipeline.targets.errors import ConfigError
from student.config import LossConfig
from student.data import Batch, TargetReader
from student.distributed import World
from student.events import Score
from student.losses.configured import distillation_formula, distillation_loss
from student.losses.cross_entropy import CrossEntropy
from student.losses.rows import Logits, parts_of
from student.student import Student
from student.targets import TorchTargets


@torch.no_grad()
def evaluate(
    student: Student,
    reader: TargetReader,
    loss: LossConfig,
    world: World,
    rows: int | None,
    precision: Literal["float32", "bfloat16"],
) -> Score:
    """The student on an epoch of the reader, or its first `rows` rows (to a whole batch), over all ranks.

    Raises ConfigError when there are fewer rows than ranks, or no targets in them.
    """
    if reader.rows < world.size:
        raise ConfigError(f"holdout: {reader.rows} held-out rows are too few for {world.size} ranks")
    student.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=world.device)
    here: Batch | None = None
    batches = math.ceil(min(reader.rows, rows or reader.rows) / reader.batch_rows)
    stream = itertools.islice(reader.epoch(0), batches)
    for _ in range(batches):
        batch = next(stream, None)
        here = batch.to(world.device) if batch is not None else here
        with torch.autocast(world.device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            logits = student(here, make=False)
        if batch is None or here is None:
            continue  # of the last rows none were left for this rank, whom the others need for its weights
        sums += _sums(loss, logits, here.targets.get(student.head.name), here.labels(student.head.name))
    student.train()
    targets, loss_sum, hard, correct = world.sum(sums).tolist()
    if not targets:
        raise ConfigError(
            f"holdout: the {reader.rows} held-out rows of {reader.store.url} have no target of "
            f"{student.head.name!r}: hold out a larger share"
        )
    return Score(
        loss=loss_sum / targets,
        hard_loss=hard / targets if student.labelled else None,
        accuracy=correct / targets if student.labelled else None,
        targets=int(targets),
    )


def _sums(loss: LossConfig, logits: Logits, targets: TorchTargets | None, labels: Tensor | None) -> Tensor:
    """Over the targets of a batch, float64 [4]: how many, their loss, the labels' cross-entropy, and how many
    labels the student puts first. One pass over parts of the logits, which need not be made.
    """
    sums = torch.zeros(4, dtype=torch.float64, device=logits.device)
    sums[0] = len(logits)
    if labels is None:
        sums[1] = distillation_loss(loss, logits, targets, None, reduction="sum")
        return sums
    formula, hard = distillation_formula(loss, targets, labels), CrossEntropy(labels=labels)
    for start, stop, z in parts_of(logits):
        sums[1] += formula.losses(z, start, stop).sum()
        sums[2] += hard.losses(z, start, stop).sum()
        sums[3] += (z.argmax(-1) == labels[start:stop]).sum()
    return sums
