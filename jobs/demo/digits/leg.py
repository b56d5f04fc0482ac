"""The digits leg from its data to its table: who is trained in which order, and who errs how often."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from jobs.demo.digits.images import Digits, Images, jittered, load
from jobs.demo.digits.networks import CLASSES, SHAPE, Member
from jobs.demo.digits.settings import HEAD, INPUT, STUDENT_SEED, TRANSFER_SEED, DigitsSettings
from jobs.demo.digits.students import Way, ways_to_learn
from jobs.demo.digits.teacher import checked, label, labelling_job, samples, train_members
from jobs.demo.digits.training import fit
from jobs.demo.results import DigitsLeg, DigitsRow
from pipeline.job import LabelJob
from pipeline.teachers import Batch, Ensemble, Teacher
from pipeline.teachers.logits import as_logits
from student.config import ShallowMimic
from student.models import build

Progress = Callable[[str], None]


def run_digits(
    folder: Path, settings: DigitsSettings | None = None, progress: Progress = lambda line: None
) -> DigitsLeg:
    """The whole leg in `folder`, which is emptied first. progress: is told of each step by a line.

    Raises LabellingFailed when a digit is not in the store exactly once or the store does not verify.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a second thread makes nets as small as these slower
    try:
        return _run(folder.resolve(), settings or DigitsSettings(), progress)
    finally:
        torch.set_num_threads(threads)


def _run(folder: Path, settings: DigitsSettings, progress: Progress) -> DigitsLeg:
    begun = time.monotonic()
    if folder.exists():
        shutil.rmtree(folder)
    digits = load(settings.test_share, settings.split_seed)

    progress(f"{len(settings.members)} networks learn {len(digits.train_labels):,} labelled digits")
    weights = train_members(folder / "teacher", digits, settings)

    progress(f"their mean labels {settings.transfer_digits:,} jittered digits that nobody labelled")
    corpus = folder / "corpus" / "digits.npy"
    corpus.parent.mkdir()
    transfer, _ = jittered(
        digits.train_images, settings.transfer_digits, settings.jitter, TRANSFER_SEED + settings.split_seed
    )
    np.save(corpus, transfer)
    job = labelling_job(corpus, weights, settings, str(folder / "store"))
    store, labelling_seconds = label(job)
    result = checked(store, len(transfer))

    ways = ways_to_learn(digits, store, settings)
    progress(f"a shallow net learns in {len(ways)} ways, {settings.seeds} times each")
    table = [*_teacher_rows(job, digits, settings), *(_row(way, digits, settings) for way in ways)]
    return DigitsLeg(
        settings=settings.flat(),
        store=result,
        labelling_seconds=labelling_seconds,
        test_examples=len(digits.test_labels),
        table=table,
        samples=samples(store),
        seconds=time.monotonic() - begun,
    )


def _row(way: Way, digits: Digits, settings: DigitsSettings) -> DigitsRow:
    model = ShallowMimic(bottleneck=settings.bottleneck, hidden=settings.hidden)
    errors = []
    for seed in range(STUDENT_SEED, STUDENT_SEED + settings.seeds):
        student = fit(
            partial(build, model, SHAPE, CLASSES),
            way.batches(seed),
            way.loss,
            settings.student_steps,
            settings.student_learning_rate,
            seed,
        )
        with torch.inference_mode():
            errors.append(error(student(torch.from_numpy(digits.test_images)), digits))
    return DigitsRow(
        name=way.name,
        kind=way.kind,
        teaches=way.teaches,
        labels=way.labels,
        parameters=_parameters(build(model, SHAPE, CLASSES)),
        examples=way.examples,
        test_errors=errors,
    )


def _teacher_rows(job: LabelJob, digits: Digits, settings: DigitsSettings) -> list[DigitsRow]:
    """The ensemble as it labelled, and each of its networks alone."""
    if not isinstance(job.teacher, Ensemble):
        raise TypeError(f"the digits' teacher is {job.teacher.kind}")
    asked = partial(_asked, images=digits.test_images)
    parameters = [_parameters(Member(architecture)) for architecture in settings.members]

    def row(
        kind: Literal["teacher", "member"], name: str, parameters: int, members: int, errors: list[float]
    ) -> DigitsRow:
        return DigitsRow(
            name=name,
            kind=kind,
            teaches=f"all {len(digits.train_labels):,} labels",
            labels=len(digits.train_labels),
            parameters=parameters,
            examples=settings.transfer_digits * members,
            test_errors=errors,
        )

    whole = [error(asked(job.teacher.load()), digits)]
    alone = [error(asked(member.load()), digits) for member in job.teacher.members]
    return [
        row("teacher", f"mean of {len(alone)} networks", sum(parameters), len(alone), whole),
        row("member", "each of them alone", max(parameters), 1, alone),
    ]


def _asked(teacher: Teacher, images: Images) -> Tensor:
    answer = teacher(Batch({INPUT: images}, np.ones(len(images), dtype=np.int64)))
    return as_logits(answer[HEAD]).whole()


def error(logits: Tensor, digits: Digits) -> float:
    """Share of the test digits whose likeliest class is wrong. logits: [test digits, 10]."""
    return float((logits.argmax(-1) != torch.from_numpy(digits.test_labels)).float().mean())


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
