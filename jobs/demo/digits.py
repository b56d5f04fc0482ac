"""The digits leg: an ensemble labels jittered digits, and a shallow net learns from what it said.

Scikit-learn's 1,797 handwritten digits are split into a training and a test set. Several networks learn all
the training labels; their mean labels tens of thousands of digits jittered out of the training images, by
the same job as any corpus: prepare, label, store, verify. Then one shallow net with a linear bottleneck is
trained anew in five ways, for the same steps with the same optimiser: from few labels (plain and jittered),
from the store (Ba & Caruana's L2 on logits, Hinton's tempered targets), and from all the labels, as the other
end of the scale. No test digit is jittered, labelled or trained on.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, PositiveFloat, PositiveInt
from safetensors.torch import save_model
from torch import Tensor, nn

from jobs.demo.checking import store_result
from jobs.demo.digit_images import Digits, Images, Jitter, few, jittered, load
from jobs.demo.networks import CLASSES, SHAPE, Architecture, Member
from jobs.demo.results import DigitSample, DigitsLeg, DigitsRow, Settings, StoreResult
from pipeline.config import Config
from pipeline.corpus import ArrayFiles
from pipeline.engine.local import Local
from pipeline.job import Batching, LabelConfig, LabelJob, StoreConfig
from pipeline.prepare import prepare
from pipeline.targets.codecs import Dense
from pipeline.targets.decoded import DenseTargets
from pipeline.targets.errors import LabellingFailed
from pipeline.targets.store import Store
from pipeline.teachers import AnyTeacher, Batch, Ensemble, Teacher, TorchCallable
from pipeline.teachers.logits import as_logits
from pipeline.views import Arrays
from student.config import ShallowMimic
from student.data import TargetReader
from student.losses import hard_cross_entropy, logit_l2, tempered_kl
from student.models import build

INPUT, HEAD = "image", "logits"
MEMBER_SEED, TRANSFER_SEED, STUDENT_SEED = 1_000, 2_000, 3_000
"""Where the seeds of each part begin, so that no two parts share their draws."""

Progress = Callable[[str], None]
Examples = Iterator[tuple[Tensor, Any]]
"""Endless (images uint8 [B, 8, 8], what they should give) of optimiser steps."""

Loss = Callable[[Tensor, Any], Tensor]


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


class _Way(NamedTuple):
    """One way to train the student. examples, seed -> its batches."""

    name: str
    kind: Literal["few", "store", "all"]
    teaches: str
    labels: int
    examples: int
    batches: Callable[[int], Examples]
    loss: Loss


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
        settings=_flat(settings),
        store=result,
        labelling_seconds=labelling_seconds,
        test_examples=len(digits.test_labels),
        table=table,
        samples=samples(store),
        seconds=time.monotonic() - begun,
    )


# The teacher


def train_members(folder: Path, digits: Digits, settings: DigitsSettings) -> list[tuple[Architecture, Path]]:
    """Each network on its own jitter of all the training digits; its weights as safetensors."""
    folder.mkdir(parents=True)
    saved = []
    for number, architecture in enumerate(settings.members):
        seed = MEMBER_SEED + number
        images, sources = jittered(digits.train_images, settings.transfer_digits, settings.jitter, seed)
        examples = shuffled(
            torch.from_numpy(images),
            torch.from_numpy(digits.train_labels[sources]),
            settings.batch_rows,
            seed,
        )
        network = fit(
            partial(Member, architecture),
            examples,
            hard_cross_entropy,
            settings.member_steps,
            settings.member_learning_rate,
            seed,
        )
        path = folder / f"{number}-{architecture}.safetensors"
        save_model(network, str(path))
        saved.append((architecture, path))
    return saved


def labelling_job(
    corpus: Path, weights: list[tuple[Architecture, Path]], settings: DigitsSettings, store: str
) -> LabelJob:
    """The job, as a person's YAML file would state it."""
    members: list[AnyTeacher] = [
        TorchCallable(
            factory="jobs.demo.networks:member",
            arguments={"architecture": architecture, "weights": str(path)},
            heads={HEAD: CLASSES},
            device="cpu",
        )
        for architecture, path in weights
    ]
    return LabelJob(
        corpus=ArrayFiles(urls=[str(corpus)], unit_rows=max(1, settings.transfer_digits // 12)),
        views=Arrays(name=INPUT, dtype="uint8", shape=list(SHAPE)),
        teacher=Ensemble(members=members, average="logits"),
        store=StoreConfig(url=store, heads={HEAD: Dense(dtype="float16")}, inputs="embed"),
        label=LabelConfig(engine="local", batching=Batching(budget=512)),
    )


def label(job: LabelJob) -> tuple[Store, float]:
    """The labelled store, and the seconds it took. Raises what preparing and labelling raise."""
    begun = time.monotonic()
    store = prepare(job)
    for _ in Local().run(job, store.pending(), threading.Event()):
        pass  # the engine itself raises when a unit is given up
    return store, time.monotonic() - begun


def checked(store: Store, digits: int) -> StoreResult:
    """The store's figures, after every shard was read and every digit found once. Raises LabellingFailed."""
    verification = store.verify()
    if verification.problems or verification.missing_units:
        raise LabellingFailed(f"the digits' store does not verify: {verification.problems}")
    keys = [key for commit in store.commits() for rows in store.read(commit) for key in rows.keys]
    if len(keys) != digits or len(set(keys)) != digits:
        raise LabellingFailed(f"{len(set(keys))} different digits in {len(keys)} rows instead of {digits}")
    return store_result(store, HEAD, verification)


def samples(store: Store, count: int = 6) -> list[DigitSample]:
    """From one shard: its first digits, and those with the highest entropy."""
    rows = next(store.read(min(store.commits(), key=lambda commit: commit.unit)))
    targets = rows.decode(HEAD)
    if not isinstance(targets, DenseTargets):
        raise TypeError(f"the digits' store holds {type(targets).__name__}")
    probabilities = torch.from_numpy(targets.logits).softmax(-1)
    entropies = torch.special.entr(probabilities).sum(-1)
    unsure = entropies[count:].topk(min(count, len(rows) - count)).indices + count
    images = rows.inputs[INPUT]
    if not isinstance(images, np.ndarray):
        raise TypeError("the digits' images vary in shape")
    return [
        DigitSample(pixels=images[i].ravel().tolist(), probabilities=probabilities[i].tolist())
        for i in [*range(count), *unsure.tolist()]
    ]


# The students


def ways_to_learn(digits: Digits, store: Store, settings: DigitsSettings) -> list[_Way]:
    """The lines of the table that are students."""
    images, labels = digits.train_images, digits.train_labels
    count, jitters = len(few(labels, settings.label_share, 0)), settings.transfer_digits

    def few_plain(seed: int) -> Examples:
        chosen = few(labels, settings.label_share, seed)
        return shuffled(
            torch.from_numpy(images[chosen]), torch.from_numpy(labels[chosen]), settings.batch_rows, seed
        )

    def jitter_of(chosen: np.ndarray[Any, np.dtype[np.int64]], seed: int) -> Examples:
        moved, sources = jittered(images[chosen], jitters, settings.jitter, seed)
        return shuffled(
            torch.from_numpy(moved), torch.from_numpy(labels[chosen][sources]), settings.batch_rows, seed
        )

    def few_jittered(seed: int) -> Examples:
        return jitter_of(few(labels, settings.label_share, seed), seed)

    def all_jittered(seed: int) -> Examples:
        return jitter_of(np.arange(len(labels)), seed)

    def stored(seed: int) -> Examples:
        reader = TargetReader(store.url, batch_rows=settings.batch_rows, seed=seed, split="all")
        return ((batch.inputs[INPUT], batch.targets[HEAD]) for batch in reader)

    some, every = f"{count} labels ({100 * settings.label_share:g} %)", f"all {len(labels):,} labels"
    tempered = partial(tempered_kl, temperature=settings.temperature)
    t = f"{settings.temperature:g}"
    return [
        _Way("cross-entropy", "few", some, count, count, few_plain, hard_cross_entropy),
        _Way("cross-entropy, jittered", "few", some, count, jitters, few_jittered, hard_cross_entropy),
        _Way("L2 on logits", "store", "the store", 0, jitters, stored, logit_l2),
        _Way(f"tempered KL, T = {t}", "store", "the store", 0, jitters, stored, tempered),
        _Way("cross-entropy, jittered", "all", every, len(labels), jitters, all_jittered, hard_cross_entropy),
    ]


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


# The table


def _row(way: _Way, digits: Digits, settings: DigitsSettings) -> DigitsRow:
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


def _flat(settings: DigitsSettings) -> Settings:
    """For the report: one level, lists as text."""
    flat: Settings = {}
    for name, value in settings.model_dump().items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": item for key, item in value.items()}
        else:
            flat[name] = ", ".join(value) if isinstance(value, list) else value
    return flat
