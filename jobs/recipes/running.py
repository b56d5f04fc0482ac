"""What every recipe does: label with a job, train students from the stores, ask them about the test set.

All of it goes on where it was stopped: units that are labelled stay, a student resumes from its checkpoint, a
trained one is only read. It knows no paper.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from jobs.commands.label import label_units
from jobs.demo.stages import Stages, StepView
from jobs.progress import LabelView
from jobs.terminal import count
from pipeline.job import LabelJob
from pipeline.prepare import prepare
from pipeline.targets.errors import LabellingFailed
from pipeline.targets.spec import Spec
from pipeline.targets.store import Store
from student import events
from student.config import TrainConfig
from student.student import restore
from student.train import train

TEST_ROWS = 1000
"""Of the test set, that a net is asked about at a time."""


def labelled(job: LabelJob, stages: Stages) -> Store:
    """The job's store, every unit labelled. Raises LabellingFailed when it was told to stop before."""
    store = prepare(job)
    planned, before = store.planned_count(), len(store.committed())
    if before < planned:
        label_units(
            job, store.pending(), LabelView(f"labelling into {store.url}", planned, before, "targets")
        )
        store.compact()
    left = planned - len(store.committed())
    if left:
        raise LabellingFailed(f"stopped, {left} units of {store.url} are left: the same command goes on")
    rows = sum(commit.rows for commit in store.commits(statistics=False))
    stages.say(f"{Path(store.url).name}: {count(rows)} targets")
    return store


def steps_of(store: Store, epochs: float, batch_rows: int) -> int:
    """Optimiser steps of so many passes over the store."""
    rows = sum(commit.rows for commit in store.commits(statistics=False))
    return math.ceil(epochs * rows / batch_rows)


def trained(students: Mapping[str, TrainConfig], stages: Stages) -> None:
    """Every student's run to its end, one after the other."""
    view = StepView("students", sum(config.steps for config in students.values()))
    before = 0
    with stages.display(view):
        for name, config in students.items():
            for event in train(config):
                if isinstance(event, events.Step):
                    view.move(before + event.step, f"{name}: loss {event.loss:.3f}")
            before += config.steps
            view.move(before, name)


@torch.inference_mode()
def answers(checkpoint: Path, spec: Spec, images: npt.NDArray[np.uint8]) -> Tensor:
    """A trained student's logits of images, float32 [N, classes]."""
    model = restore(checkpoint, spec).model
    parts = torch.split(torch.from_numpy(images.copy()), TEST_ROWS)
    return torch.cat([model(part).float() for part in parts])


def errors(logits: Tensor, labels: npt.NDArray[np.int64]) -> int:
    """How many are wrong."""
    return int((logits.argmax(-1) != torch.from_numpy(labels)).sum())
