"""A training run: its store, its student, and everything that decides what the student becomes."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from student.config.base import Config
from student.config.losses import LossConfig
from student.config.models import AnyModel
from student.config.reading import ReadingConfig, StoreLocation, VocabularyConfig

Decay = Annotated[float, Field(ge=0, lt=1)]
"""Share of a running mean that is left after a step."""


class TrainConfig(Config):
    """Everything that training one student needs."""

    store: StoreLocation | None = None
    """The store to learn from; in a job's file, by default the job's own."""

    output: str
    """Local directory for checkpoints and metrics. A run that finds its checkpoint there goes on from it."""

    head: str = "logits"
    """The teacher's head to learn from."""

    input: str | None = None
    """The store's input that the student sees; may be left out when there is only one besides "label"."""

    tokenizer_fingerprint: str | None = None
    """If given, stores labelled with any other tokenizer are refused."""

    vocabulary: VocabularyConfig | None = None
    """If given, the student's tokenizer is held against the store's, and ids are mapped where needed."""

    model: AnyModel
    """The student."""

    loss: LossConfig = LossConfig()
    """What it minimises."""

    steps: PositiveInt
    """Optimiser steps of the whole run."""

    batch_rows: PositiveInt = 64
    """Rows of one optimiser step, over all ranks and accumulated parts."""

    accumulation: PositiveInt = 1
    """Parts that a step's rows are worked through in, to save memory. Does not change the result."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with Nesterov momentum."""

    learning_rate: PositiveFloat = 1e-3
    """Its peak."""

    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """AdamW's decay rates of the two moments."""

    momentum: float = Field(default=0.9, ge=0, lt=1)
    """SGD's momentum."""

    weight_decay: NonNegativeFloat = 0.0
    """Decoupled for AdamW; on matrices only, not on norms and biases."""

    warmup_steps: NonNegativeInt = 0
    """Steps of linear warm-up."""

    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    """After the warm-up: half a cosine down to `final_learning_rate` of the peak; no change until the last
    `decay_share` of the steps and then down (warm-up, stable, decay); or no change at all."""

    decay_share: float = Field(default=0.2, gt=0, le=1)
    """Of wsd: the share of all steps in which the rate falls."""

    final_learning_rate: float = Field(default=0.1, ge=0, le=1)
    """Where cosine and wsd end, as a share of the peak."""

    clip_norm: PositiveFloat | None = 1.0
    """Largest gradient norm; null does not clip."""

    average_decay: float | None = Field(default=None, gt=0, lt=1)
    """If given, an exponential moving average of the weights is kept with this decay per step (0.999), and is
    what is evaluated and what model.safetensors holds."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the forward pass (autocast). Weights, optimiser and losses stay float32."""

    device: str = "auto"
    """"auto" (an accelerator if there is one, but for Apple's, which has no float64), "cpu", "cuda", …"""

    parallel: Literal["ddp", "fsdp"] = "ddp"
    """What several ranks do: each holds the whole student (ddp), or each a part of every weight, gradient and
    moment (FSDP2)."""

    deterministic: bool = False
    """Ask torch for deterministic kernels on an accelerator too. On a CPU runs repeat to the bit anyway."""

    seed: int = 0
    """Of the initial weights, the order of rows and every other draw."""

    holdout: float = Field(default=0.05, ge=0, lt=1)
    """Share of the store's shards that is never trained on, only evaluated; 0 for none."""

    window_shards: PositiveInt = 8
    """Shards in memory whose rows are shuffled together; the next as many are fetched meanwhile."""

    reading: ReadingConfig = ReadingConfig()
    """The cache of this machine, and buckets of rows of equal length."""

    evaluate_every: PositiveInt = 200
    """Steps between evaluations on the held-out shards; the last step is always evaluated."""

    evaluate_rows: PositiveInt | None = None
    """Held-out rows per evaluation; by default all."""

    checkpoint_every: PositiveInt = 200
    """Steps between checkpoints; the last step always has one."""

    log_every: PositiveInt = 10
    """Steps between reports of the loss."""

    check_rows: NonNegativeInt = 64
    """Rows of the store that are looked at before the first step, of at most 4 shards: whether the bytes are
    right, the targets distributions, and each at its own token. 0 looks at none."""

    trackers: list[Literal["tensorboard", "mlflow", "wandb"]] = Field(default=[])
    """Who is told of losses and rates besides `output`/metrics.jsonl: TensorBoard (`output`/tensorboard),
    MLflow (where MLFLOW_TRACKING_URI says), Weights & Biases (WANDB_MODE and its other variables)."""

    @model_validator(mode="after")
    def _one_tokenizer(self) -> Self:
        if self.tokenizer_fingerprint is not None and self.vocabulary is not None:
            raise ValueError("tokenizer_fingerprint and vocabulary both say which tokenizer it is: give one")
        return self


FREE_ON_RESUME = frozenset(
    {
        "store",
        "vocabulary",
        "output",
        "accumulation",
        "check_rows",
        "device",
        "reading",
        "evaluate_every",
        "checkpoint_every",
        "log_every",
        "parallel",
        "trackers",
    }
)
"""What may change between a run and its continuation. The reader's state says which store it was, which
buckets, and which tokenizer the student's.
"""

OWN = frozenset(
    {
        "output",
        "head",
        "input",
        "model",
        "loss",
        "steps",
        "optimizer",
        "learning_rate",
        "betas",
        "momentum",
        "weight_decay",
        "warmup_steps",
        "schedule",
        "decay_share",
        "final_learning_rate",
        "clip_norm",
        "average_decay",
        "precision",
        "evaluate_every",
        "evaluate_rows",
        "checkpoint_every",
        "log_every",
        "trackers",
    }
)
"""What each of several students of one pass over a store may have for itself; they share all else."""
