"""Hinton, Vinyals & Dean 2015 (arXiv:1503.02531), section 3, on MNIST: teachers, stores, students.

It knows what is trained from what. What the figures mean beside the paper's, `hinton_results` knows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from jobs.demo.stages import Stages, StepView, plural
from jobs.recipes import mnist
from jobs.recipes.hinton_results import bias_corrected, temperature_name
from jobs.recipes.precision import Precision
from jobs.recipes.results import Results
from jobs.recipes.running import answers, errors, labelled, steps_of, trained
from jobs.recipes.teaching import TeacherSettings, teach
from pipeline.config import Config
from pipeline.corpus import ParquetFiles
from pipeline.job import Batching, LabelConfig, LabelJob, StoreConfig
from pipeline.targets.codecs import Dense
from pipeline.targets.spec import Spec
from pipeline.targets.store import Store
from pipeline.teachers import AnyTeacher, Batch, Ensemble, TorchCallable
from pipeline.teachers.logits import as_logits
from pipeline.views import Arrays
from student.config import MLP, LossConfig, StoreLocation, TrainConfig

INPUT, HEAD = "image", "logits"

TRANSFER: dict[str, list[int]] = {
    "all": list(range(10)),
    "no-3": [0, 1, 2, 4, 5, 6, 7, 8, 9],
    "7-8": [7, 8],
    "few": list(range(10)),
}
"""Transfer sets by name, and the digits in them. Of "few" only a share is labelled."""


class StudentSettings(Config):
    """The students and their training; none of them is shown a jittered digit."""

    hidden: list[PositiveInt] = Field(default=[800, 800], min_length=1)
    """Widths of the hidden layers."""

    temperature: PositiveFloat = 20.0
    """T of the soft targets."""

    hard_weight: float = Field(default=0.5, ge=0, le=1)
    """Weight of the labels' cross-entropy beside the soft targets', which has the factor T²."""

    epochs: PositiveInt = 30
    """Passes over the transfer set."""

    few_epochs: PositiveInt = 200
    """The same where it is a small share of it."""

    batch_rows: PositiveInt = 100
    """Digits of a step."""

    learning_rate: PositiveFloat = 1e-3
    """AdamW's at the start, without weight decay; it falls by half a cosine."""

    precision: Precision = "bfloat16"
    """Of the products (autocast)."""


class SweepSettings(Config):
    """Temperatures for smaller students."""

    widths: list[PositiveInt] = Field(default=[300, 30], min_length=1)
    """Of both hidden layers."""

    temperatures: list[PositiveFloat] = Field(default=[1.0, 2.5, 4.0, 8.0, 20.0], min_length=1)
    """Tried for each width."""

    epochs: PositiveInt = 10
    """Passes over the transfer set."""


class HintonSettings(Config):
    """The whole recipe."""

    seeds: PositiveInt = 3
    """Teachers, each with students of its own."""

    members: NonNegativeInt = 10
    """Teachers of the ensemble, those of the seeds among them; below two there is no ensemble."""

    share: float = Field(default=0.03, gt=0, le=1)
    """Of the transfer set, where a small share of it is used."""

    digits: PositiveInt | None = None
    """Takes so many of the training digits; by default all."""

    unit_rows: PositiveInt = 4096
    """Digits of a unit of the store."""

    teacher: TeacherSettings = TeacherSettings()
    """All teachers."""

    student: StudentSettings = StudentSettings()
    """All students but for the sweep's widths, temperatures and epochs."""

    sweep: SweepSettings = SweepSettings()
    """Temperatures for smaller students."""

    def at(self, precision: Precision) -> HintonSettings:
        """The same with all nets in that precision."""
        changed = {"precision": precision}
        parts = {"teacher": self.teacher, "student": self.student}
        return self.model_copy(update={k: part.model_copy(update=changed) for k, part in parts.items()})


def quick() -> HintonSettings:
    """All of it in seconds, with figures that show only that it runs."""
    return HintonSettings(
        seeds=2,
        members=3,
        share=0.2,
        digits=600,
        unit_rows=256,
        teacher=TeacherSettings(hidden=[32, 32], epochs=2, checkpoint_epochs=1),
        student=StudentSettings(hidden=[32, 32], epochs=2, few_epochs=2),
        sweep=SweepSettings(widths=[16, 8], temperatures=[1.0, 20.0], epochs=1),
    )


def reproduce(data: Path, output: Path, settings: HintonSettings, stages: Stages) -> Results:
    """Everything in `output`, which keeps what is done already. Raises what labelling and training raise."""
    digits, test = mnist.read(data, "train"), mnist.read(data, "test")
    digits = mnist.Digits(digits.images[: settings.digits], digits.labels[: settings.digits])
    recipe = _Recipe(output.resolve(), settings, digits, test, stages)
    mnist.write_corpus(recipe.corpus, digits)
    with stages.stage(
        f"Train {plural(settings.seeds, 'teacher')}",
        "Two layers of 1200 units with dropout, on digits moved by up to two pixels.",
    ):
        recipe.teach(range(settings.seeds))
    with stages.stage("Label the transfer sets", "Digits as they are, the teacher's logits beside them."):
        stores = {
            (seed, name): recipe.label(name, [seed]) for seed in range(settings.seeds) for name in TRANSFER
        }
    with stages.stage("Train the students", "On labels alone, and on what the stores say."):
        plans = dict(recipe.students(stores))
        trained(plans, stages)
    if settings.members > 1:
        with stages.stage(f"An ensemble of {settings.members} as the teacher", "The mean of its members."):
            recipe.teach(range(settings.members))
            plans |= (mimics := dict(recipe.of_ensemble(recipe.label("all", range(settings.members)))))
            trained(mimics, stages)
    with stages.stage("Count the errors", f"On {len(test.labels):,} test digits that nobody has seen."):
        return recipe.results(plans, stores[0, "all"].spec)


class _Recipe:
    """The folders of a run, and what each stage makes in them."""

    def __init__(
        self, folder: Path, settings: HintonSettings, digits: mnist.Digits, test: mnist.Digits, stages: Stages
    ) -> None:
        self.folder, self.settings, self.stages = folder, settings, stages
        self.digits, self.test = digits, test
        self.corpus = folder / "corpus"

    def teach(self, seeds: Sequence[int]) -> None:
        """The teachers of those seeds, as far as they are not trained yet."""
        epochs = self.settings.teacher.epochs
        view = StepView("teachers", len(seeds) * epochs)
        with self.stages.display(view):
            for place, seed in enumerate(seeds):

                def progress(done: int, loss: float, place: int = place, seed: int = seed) -> None:
                    view.move(place * epochs + done, f"teacher {seed}: epoch {done}, loss {loss:.3f}")

                teach(
                    self.folder / "teachers" / str(seed), self.digits, self.settings.teacher, seed, progress
                )

    def teacher(self, members: Sequence[int]) -> AnyTeacher:
        """One teacher, or the ensemble of several."""
        one: list[AnyTeacher] = [
            TorchCallable(
                factory="jobs.recipes.networks:digit_teacher",
                arguments={
                    "hidden": self.settings.teacher.hidden,
                    "checkpoint": str(self.folder / "teachers" / str(member) / "last"),
                },
                heads={HEAD: mnist.CLASSES},
                device="cpu",
            )
            for member in members
        ]
        return one[0] if len(one) == 1 else Ensemble(members=one, average="probabilities")

    def label(self, transfer: str, members: Sequence[int]) -> Store:
        """The store of a transfer set."""
        who = f"teacher-{members[0]}" if len(members) == 1 else f"ensemble-{len(members)}"
        job = LabelJob(
            corpus=ParquetFiles(
                urls=[str(mnist.digit_file(self.corpus, digit)) for digit in TRANSFER[transfer]],
                root=str(self.corpus),
                columns={"array": "image", "label": "label"},
                sample=self.settings.share if transfer == "few" else 1.0,
                unit_rows=self.settings.unit_rows,
            ),
            views=Arrays(name=INPUT, dtype="uint8", shape=[mnist.PIXELS], label="label"),
            teacher=self.teacher(members),
            store=StoreConfig(
                url=str(self.folder / "stores" / f"{who}-{transfer}"), heads={HEAD: Dense(dtype="float16")}
            ),
            label=LabelConfig(batching=Batching(budget=1000)),
        )
        return labelled(job, self.stages)

    def students(self, stores: dict[tuple[int, str], Store]) -> Iterator[tuple[str, TrainConfig]]:
        """Every student of a single teacher by name, with its training."""
        student, sweep = self.settings.student, self.settings.sweep
        hard, soft = LossConfig(kind="hard"), self._soft(student.temperature)
        for seed in range(self.settings.seeds):
            for kind, transfer, loss in (
                ("soft", "all", soft),
                ("hard", "all", hard),
                ("no-3", "no-3", soft),
                ("7-8", "7-8", soft),
                ("few-hard", "few", hard),
                ("few-soft", "few", soft),
            ):
                epochs = student.few_epochs if transfer == "few" else student.epochs
                yield self._train(kind, stores[seed, transfer], loss, epochs, student.hidden, seed)
        for seed in range(self.settings.seeds):
            for width in sweep.widths:
                for temperature in sweep.temperatures:
                    kind, loss = temperature_name(width, temperature), self._soft(temperature)
                    yield self._train(kind, stores[seed, "all"], loss, sweep.epochs, [width, width], seed)

    def of_ensemble(self, store: Store) -> Iterator[tuple[str, TrainConfig]]:
        """The students of the ensemble."""
        student, soft = self.settings.student, self._soft(self.settings.student.temperature)
        for seed in range(self.settings.seeds):
            kind = f"ensemble-of-{self.settings.members}"
            yield self._train(kind, store, soft, student.epochs, student.hidden, seed)

    def _soft(self, temperature: float) -> LossConfig:
        return LossConfig(
            kind="tempered_kl", temperature=temperature, hard_weight=self.settings.student.hard_weight
        )

    def _train(
        self, kind: str, store: Store, loss: LossConfig, epochs: int, hidden: list[int], seed: int
    ) -> tuple[str, TrainConfig]:
        """Its name, of the kind and the seed, and its training."""
        student, name = self.settings.student, f"{kind}-{seed}"
        return name, TrainConfig(
            store=StoreLocation(url=store.url),
            output=str(self.folder / "students" / name),
            model=MLP(hidden=hidden),
            loss=loss,
            steps=steps_of(store, epochs, student.batch_rows),
            batch_rows=student.batch_rows,
            learning_rate=student.learning_rate,
            betas=(0.9, 0.999),
            final_learning_rate=0.0,
            clip_norm=None,
            precision=student.precision,
            device="cpu",
            seed=seed,
            holdout=0.0,
            window_shards=64,  # all: the files are sorted by digit
            checkpoint_every=500,
            log_every=100,
        )

    def results(self, plans: dict[str, TrainConfig], spec: Spec) -> Results:
        """The errors of all, and what correcting a bias does."""
        test, found = self.test, Results(settings=self.settings.model_dump(mode="json"))
        for seed in range(self.settings.seeds):
            found.add("teacher", errors(self._asked([seed]), test.labels))
        if self.settings.members > 1:
            said = self._asked(range(self.settings.members))
            found.add("ensemble-teacher", errors(said, test.labels))
        for name, config in plans.items():
            kind, _, _ = name.rpartition("-")
            checkpoint = Path(config.output) / "checkpoints" / "last"
            logits = answers(checkpoint, spec, test.images)
            found.add("ensemble" if kind.startswith("ensemble") else kind, errors(logits, test.labels))
            if kind == "no-3":
                threes = test.labels == 3
                found.add("no-3, threes", errors(logits[threes], test.labels[threes]))
                shift, corrected = bias_corrected(logits, test.labels, [3], np.arange(0, 15, 0.1))
                found.add("no-3, corrected", errors(corrected, test.labels))
                found.add("no-3, corrected, threes", errors(corrected[threes], test.labels[threes]))
                found.add("no-3, shift", shift)
            if kind == "7-8":
                shift, corrected = bias_corrected(logits, test.labels, [7, 8], -np.arange(0, 25, 0.1))
                found.add("7-8, corrected", errors(corrected, test.labels))
                found.add("7-8, shift", shift)
        return found

    def _asked(self, members: Sequence[int]) -> torch.Tensor:
        teacher = self.teacher(members).load()
        ones = np.ones(len(self.test.labels), dtype=np.int64)
        return as_logits(teacher(Batch({INPUT: self.test.images}, ones))[HEAD]).whole()
