"""Ba & Caruana 2014 (arXiv:1312.6184), section 4, on CIFAR-10: shallow nets that mimic ResNets.

It knows what is trained from what. What the figures mean beside the paper's, `mimic_results` knows.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from jobs.demo.stages import Stages
from jobs.recipes import cifar10
from jobs.recipes.bottleneck import speed_up
from jobs.recipes.corpus import Pixels
from jobs.recipes.precision import Precision
from jobs.recipes.results import Results
from jobs.recipes.running import TEST_ROWS, answers, errors, labelled, steps_of, trained
from jobs.recipes.shallow import weights
from pipeline.config import Config
from pipeline.corpus import ParquetFiles
from pipeline.job import Batching, LabelConfig, LabelJob, StoreConfig
from pipeline.targets.codecs import Dense
from pipeline.targets.store import Store
from pipeline.teachers import Batch, TorchCallable
from pipeline.teachers.logits import as_logits
from pipeline.views import Images
from pipeline.views.images import RandomCrop
from student.config import LossConfig, StoreLocation, TorchModule, TrainConfig

INPUT, ENSEMBLE = "image", "ensemble"
PICTURE: dict[str, Any] = {"name": INPUT, "size": cifar10.SIDE, "dtype": "uint8", "label": "label"}
HARD, L2 = LossConfig(kind="hard"), LossConfig(kind="logit_l2")
KL = LossConfig(kind="tempered_kl", temperature=1.0)


class Size(Config):
    """How large a shallow net is."""

    bottleneck: PositiveInt
    """Width k of the linear layer."""

    hidden: PositiveInt
    """Width H of the layer after it."""


class StudentSettings(Config):
    """The shallow nets and their training."""

    channels: PositiveInt = 32
    """Of the one convolution."""

    pool: PositiveInt = 4
    """Side of the squares of which the maximum is taken."""

    sizes: dict[str, Size] = Field(
        default={
            "small": Size(bottleneck=32, hidden=500),
            "medium": Size(bottleneck=128, hidden=2000),
            "large": Size(bottleneck=256, hidden=8000),
        },
        min_length=1,
    )
    """By name, from small to large; the last is used where one is enough."""

    epochs: PositiveInt = 10
    """Passes over the views."""

    batch_rows: PositiveInt = 128
    """Views of a step."""

    learning_rate: PositiveFloat = 3e-3
    """AdamW's at its peak; it falls by half a cosine."""

    warmup_steps: PositiveInt = 200
    """Of a linear warm-up."""

    precision: Precision = "bfloat16"
    """Of the products (autocast)."""


class MimicSettings(Config):
    """The whole recipe."""

    seeds: PositiveInt = 2
    """Students of each kind."""

    teachers: list[PositiveInt] = Field(default=[20, 32, 44, 56], min_length=1)
    """Layers of the ResNets of the ensemble; the first is a teacher of its own too."""

    precision: Precision = "bfloat16"
    """Of the teachers' convolutions."""

    views: PositiveInt = 2
    """Of every training picture, cut and flipped at random."""

    smallest_crop: float = Field(default=0.7, gt=0, le=1)
    """Of a picture's area."""

    pictures: PositiveInt | None = None
    """Takes so many of the training pictures; by default all."""

    unit_rows: PositiveInt = 2000
    """Pictures of a unit of the store."""

    student: StudentSettings = StudentSettings()
    """All students."""

    def at(self, precision: Precision) -> MimicSettings:
        """The same with all nets in that precision."""
        student = self.student.model_copy(update={"precision": precision})
        return self.model_copy(update={"precision": precision, "student": student})


def quick() -> MimicSettings:
    """All of it in seconds, with figures that show only that it runs."""
    return MimicSettings(
        teachers=[20],
        pictures=250,
        unit_rows=100,
        student=StudentSettings(
            channels=4,
            sizes={"small": Size(bottleneck=4, hidden=20), "large": Size(bottleneck=8, hidden=40)},
            epochs=1,
            warmup_steps=1,
        ),
    )


def reproduce(data: Path, output: Path, settings: MimicSettings, stages: Stages) -> Results:
    """Everything in `output`, which keeps what is done already. Raises what labelling and training raise."""
    recipe = _Recipe(data.resolve(), output.resolve(), settings, stages)
    with stages.stage("Read CIFAR-10"):
        recipe.read()
    with stages.stage(
        "Label views of the training pictures",
        f"{settings.views} of each, cut and flipped at random, and beside them the pictures as they are.",
    ):
        views = recipe.label("views", recipe.views(), (ENSEMBLE, recipe.single))
        pictures = recipe.label("pictures", Images(**PICTURE), (recipe.single,))
    with stages.stage("Train the shallow nets", "On pictures and their labels, and as mimics on views."):
        plans = dict(recipe.students(views, pictures))
        trained(plans, stages)
    with stages.stage("Measure the bottleneck", "Steps of the same net with and without it, in turns."):
        results = Results(settings=settings.model_dump(mode="json"))
        largest = list(settings.student.sizes.values())[-1]
        found = speed_up(settings.student, largest.bottleneck, largest.hidden)
        for name, value in found.items():
            results.add(name, value)
    with stages.stage("Count the errors", f"On {len(recipe.test.labels):,} test pictures."):
        return recipe.results(plans, views, results)


class _Recipe:
    """The folders of a run, and what each stage makes in them."""

    test: cifar10.Pictures

    def __init__(self, data: Path, folder: Path, settings: MimicSettings, stages: Stages) -> None:
        self.data, self.folder, self.settings, self.stages = data, folder, settings, stages
        self.corpus = folder / "corpus" / "pictures.parquet"

    def read(self) -> None:
        """The test pictures, and the corpus where it is not written yet."""
        self.test = cifar10.read(self.data, "test")
        if not self.corpus.exists():
            images, labels = cifar10.read(self.data, "train")
            some = slice(self.settings.pictures)
            cifar10.write_corpus(self.corpus, cifar10.Pictures(images[some], labels[some]))

    def teacher(self) -> TorchCallable:
        """The ResNets, each a head, and the mean of their logits."""
        heads = [ENSEMBLE, *(f"resnet{depth}" for depth in self.settings.teachers)]
        return TorchCallable(
            factory="jobs.recipes.resnet:committee",
            arguments={
                "data": str(self.data),
                "depths": self.settings.teachers,
                "precision": self.settings.precision,
            },
            heads=dict.fromkeys(heads, cifar10.CLASSES),
        )

    def views(self) -> Images:
        """Of a picture, at random."""
        settings = self.settings
        crop = RandomCrop(scale=(settings.smallest_crop, 1.0), ratio=(0.9, 1.1))
        return Images(views=settings.views, crop=crop, flip=0.5, **PICTURE)

    def label(self, name: str, views: Images, heads: tuple[str, ...]) -> Store:
        """The store of that name, with the pictures' labels and what these heads say of the views."""
        job = LabelJob(
            corpus=ParquetFiles(
                urls=[str(self.corpus)],
                columns={"image": "image", "label": "label"},
                unit_rows=self.settings.unit_rows,
            ),
            views=views,
            teacher=self.teacher(),
            store=StoreConfig(
                url=str(self.folder / "stores" / name),
                heads={head: Dense(dtype="float16") for head in heads},
            ),
            label=LabelConfig(batching=Batching(budget=250)),
        )
        return labelled(job, self.stages)

    @property
    def single(self) -> str:
        """The head of the weakest ResNet."""
        return f"resnet{self.settings.teachers[0]}"

    def students(self, views: Store, pictures: Store) -> Iterator[tuple[str, TrainConfig]]:
        """Every shallow net by name, with its training. All take the same number of steps."""
        student, single = self.settings.student, self.single
        steps = steps_of(views, student.epochs, student.batch_rows)
        *_, largest = student.sizes
        for seed in range(self.settings.seeds):
            for size in student.sizes:
                yield self._train("labels", pictures, single, HARD, size, steps, seed)
                yield self._train("mimic", views, ENSEMBLE, L2, size, steps, seed)
            yield self._train("single", views, single, L2, largest, steps, seed)
            yield self._train("kl", views, ENSEMBLE, KL, largest, steps, seed)
            yield self._train("augmented", views, single, HARD, largest, steps, seed)

    def _net(self, size: Size) -> dict[str, int]:
        """Arguments of `shallow.shallow`."""
        student = self.settings.student
        return {"channels": student.channels, "pool": student.pool, **size.model_dump()}

    def _train(
        self, kind: str, store: Store, head: str, loss: LossConfig, size: str, steps: int, seed: int
    ) -> tuple[str, TrainConfig]:
        """Its name, of kind, size and seed, and its training."""
        student, name = self.settings.student, f"{kind}-{size}-{seed}"
        return name, TrainConfig(
            store=StoreLocation(url=store.url),
            output=str(self.folder / "students" / name),
            head=head,
            model=TorchModule(
                factory="jobs.recipes.shallow:shallow",
                arguments=self._net(student.sizes[size]),
            ),
            loss=loss,
            steps=steps,
            batch_rows=student.batch_rows,
            learning_rate=student.learning_rate,
            betas=(0.9, 0.999),
            warmup_steps=student.warmup_steps,
            final_learning_rate=0.0,
            precision=student.precision,
            seed=seed,
            holdout=0.0,
            checkpoint_every=500,
            log_every=50,
        )

    def results(self, plans: dict[str, TrainConfig], store: Store, found: Results) -> Results:
        """Test accuracies in percent, by kind and size."""
        images = np.ascontiguousarray(self.test.images.transpose(0, 3, 1, 2))
        total = len(self.test.labels)
        for head, logits in self._asked(images).items():
            found.add(head, 100 - 100 * errors(logits, self.test.labels) / total)
        for name, config in plans.items():
            kind, _, _ = name.rpartition("-")
            logits = answers(Path(config.output) / "checkpoints" / "last", store.spec, images)
            found.add(kind, 100 - 100 * errors(logits, self.test.labels) / total)
        for size, net in self.settings.student.sizes.items():
            found.add(f"weights {size}", weights(self._net(net)))
        return found

    def _asked(self, images: Pixels) -> dict[str, Tensor]:
        """The teachers' logits by head, float32 [N, 10]."""
        teacher, said = self.teacher().load(), []
        for start in range(0, len(images), TEST_ROWS):
            part = images[start : start + TEST_ROWS]
            answer = teacher(Batch({INPUT: part}, np.ones(len(part), dtype=np.int64)))
            said.append({head: as_logits(logits).whole().float() for head, logits in answer.items()})
        return {head: torch.cat([part[head] for part in said]) for head in said[0]}
