"""How good a student is on rows it never saw. Knows nothing of optimisers or checkpoints."""

from __future__ import annotations

import itertools
import math
from typing import Literal

import torch

from pipeline.targets.errors import ConfigError
from student.config import LossConfig
from student.data import Batch, TargetReader
from student.distributed import World
from student.events import Score
from student.losses import distillation_loss, hard_cross_entropy
from student.student import Student


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

    Raises ConfigError when there are fewer rows than ranks.
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
            logits = student(here)
        if batch is None or here is None:
            continue  # of the last rows none were left for this rank, whom the others need for its weights
        labels = here.labels(student.head.name)
        sums[0] += len(logits)
        sums[1] += distillation_loss(
            loss, logits, here.targets.get(student.head.name), labels, reduction="sum"
        )
        if labels is not None:
            sums[2] += hard_cross_entropy(logits, labels, reduction="sum")
            sums[3] += (logits.argmax(-1) == labels).sum()
    student.train()
    targets, loss_sum, hard, correct = world.sum(sums).tolist()
    return Score(
        loss=loss_sum / targets,
        hard_loss=hard / targets if student.labelled else None,
        accuracy=correct / targets if student.labelled else None,
        targets=int(targets),
    )
