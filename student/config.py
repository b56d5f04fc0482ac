"""What a training run is, as one typed configuration. Knows no torch: importing it is cheap everywhere.

The string under a field is its documentation; it appears in the JSON schema and in `decant config`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)


class Config(BaseModel):
    """Base of every configuration class of the student: typed, frozen, unknown keys refused."""

    # defer_build: a command pays for the validators of what it reads, not of all that there are.
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, defer_build=True)


class SmallLM(Config):
    """A causal transformer for token stores: RMSNorm, rotary positions, no biases."""

    kind: Literal["small_lm"] = "small_lm"

    layers: PositiveInt = 4
    """Transformer blocks."""

    width: PositiveInt = 256
    """Width of the residual stream; a multiple of twice `heads`."""

    heads: PositiveInt = 4
    """Attention heads."""

    mlp: Literal["swiglu", "gelu"] = "swiglu"
    """The feed-forward layer: gated SiLU (three matrices) or GELU (two)."""

    hidden: PositiveInt | None = None
    """Width of the feed-forward layer; by default 4 * width for gelu, 8/3 * width (to a multiple of 16) for
    swiglu, which costs the same."""

    rope_theta: PositiveFloat = 10_000.0
    """Base of the rotary frequencies."""

    tie_embeddings: bool = True
    """Use the token embedding as the output matrix too."""


class MLP(Config):
    """A plain ReLU network on the flattened input, for stores of fixed-size inputs."""

    kind: Literal["mlp"] = "mlp"

    hidden: list[PositiveInt] = Field(default=[800, 800], min_length=1)
    """Widths of the hidden layers."""

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of hidden units dropped at each training step."""


class ShallowMimic(Config):
    """Ba & Caruana's shallow net: a linear bottleneck, then one wide ReLU layer."""

    kind: Literal["shallow_mimic"] = "shallow_mimic"

    hidden: PositiveInt = 2000
    """Width H of the one hidden layer."""

    bottleneck: PositiveInt = 64
    """Rank k of the factorised first layer: k (H + D) weights instead of H D."""


class SmallCNN(Config):
    """A few 3x3 convolutions with ReLU and 2x2 pooling, then one hidden layer, for images [C, H, W]."""

    kind: Literal["small_cnn"] = "small_cnn"

    channels: list[PositiveInt] = Field(default=[32, 64], min_length=1)
    """Output channels of each convolution; each is followed by a halving of both sides."""

    hidden: PositiveInt = 128
    """Width of the hidden layer after the convolutions."""


class Transformers(Config):
    """A causal language model of the transformers library, for token stores (extra: transformers)."""

    kind: Literal["transformers"] = "transformers"

    path: str | None = None
    """A directory with a config.json, as save_pretrained writes it."""

    pretrained: bool = False
    """Begin with the weights in `path`; otherwise with new ones."""

    config: dict[str, Any] = {}
    """Instead of `path`, or on top of it: the model's configuration, for example {model_type: llama,
    hidden_size: 256, …}. vocab_size is the head's unless it is given."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.path is None and ("model_type" not in self.config or self.pretrained):
            raise ValueError("give path, a directory with a config.json, or config with its model_type")
        return self


class TorchModule(Config):
    """Any module of yours: it takes the input tensor and returns logits [rows, V] or [rows, L, V]."""

    kind: Literal["torch"] = "torch"

    factory: str = Field(pattern=r"^[\w.]+:[\w.]+$")
    """Where the function that builds the torch.nn.Module is: "package.module:factory"."""

    arguments: dict[str, Any] = {}
    """Its keyword arguments."""


AnyModel = Annotated[
    SmallLM | MLP | ShallowMimic | SmallCNN | Transformers | TorchModule, Field(discriminator="kind")
]


class LossConfig(Config):
    """What the student minimises: (1 - hard_weight) * soft + hard_weight * cross-entropy on the labels."""

    kind: Literal[
        "auto",
        "hard",
        "sparse_cross_entropy",
        "topk_kl",
        "tempered_kl",
        "reverse_kl",
        "jensen_shannon",
        "skew_kl",
        "skew_reverse_kl",
        "total_variation",
        "decoupled_kd",
        "logit_l2",
        "annealed_logit_l2",
        "cosine_distance",
        "feature_mse",
        "smooth_l1",
        "relational_distance",
        "relational_angle",
        "similarity_preserving",
        "seed_affinity",
    ] = "auto"
    """The soft part. "auto" takes the one that fits the stored targets: sparse_cross_entropy for threshold
    and sampled, topk_kl for topk and topp, tempered_kl for dense, cosine_distance for embeddings. "hard"
    ignores the teacher. docs/losses.md says which to use when."""

    temperature: PositiveFloat = 1.0
    """T of what is softened by one: all divergences. topk and topp need 1/T among the stored betas, or with
    slopes between two of them; threshold knows 1 alone."""

    final_temperature: PositiveFloat | None = None
    """If given, T goes evenly from `temperature` to this over the run."""

    hard_weight: float = Field(default=0.0, ge=0, le=1)
    """Weight of the cross-entropy on the labels (a token store's next tokens, or its input "label")."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of a label's probability that is spread evenly over all classes."""

    weighting: Literal["uniform", "uncertainty"] = "uniform"
    """Of each target's loss: the same for all, or the student's entropy there over a uniform guess's."""

    jsd_beta: float = Field(default=0.5, gt=0, lt=1)
    """The teacher's share in the mixture of jensen_shannon."""

    skew: float = Field(default=0.1, gt=0, lt=1)
    """Share of the first distribution in the second, of skew_kl and skew_reverse_kl."""

    decoupled_weights: tuple[NonNegativeFloat, NonNegativeFloat] = (1.0, 8.0)
    """Of decoupled_kd: of the label against all others, and of the others among themselves."""

    annealing_temperature: float = Field(default=10.0, ge=1)
    """Of annealed_logit_l2: where its temperature begins to fall to 1."""

    annealing_share: float = Field(default=0.8, gt=0, le=1)
    """Of annealed_logit_l2: the share of the run in which it does; from then on the labels are learned."""

    teacher_factor: PositiveFloat = 1.0
    """Of annealed_logit_l2: what the teacher's logits are multiplied by. A run sets it step by step."""

    def at(self, progress: float) -> LossConfig:
        """What is minimised after that share of the run, 0 to 1."""
        if self.kind == "annealed_logit_l2":
            share = progress / self.annealing_share
            if share > 1:
                return self.model_copy(update={"kind": "hard"})
            # Annealing-KD (Jafari et al. 2021): 1 - (T - 1) / T_max while T falls evenly from T_max to 1.
            highest = self.annealing_temperature
            temperature = highest + share * (1 - highest)
            return self.model_copy(update={"teacher_factor": 1 - (temperature - 1) / highest})
        if self.final_temperature is None:
            return self
        temperature = self.temperature + progress * (self.final_temperature - self.temperature)
        return self.model_copy(update={"temperature": temperature})


class StoreLocation(Config):
    """A store to learn from."""

    url: str
    """The store: a directory or any fsspec URL."""

    options: dict[str, Any] = {}
    """fsspec options of the URL, for example {endpoint_url: …}. Credentials belong in the environment."""


class ReadingConfig(Config):
    """How a store is read, beyond which rows come when."""

    cache: str | None = None
    """A local directory for decoded shards, which ranks, later epochs and other runs on this machine share.
    null keeps none: right for a local store that is read once."""

    cache_gigabytes: PositiveFloat = 100.0
    """What the directory holds at most; what was used longest ago goes first. 1 is 10^9 bytes."""

    bucket_rows: NonNegativeInt = 0
    """Rows that are sorted by length together, so that a batch's are about equally long; 0 sorts none. At
    least `batch_rows`."""


class VocabularyConfig(Config):
    """The student's tokenizer. One with other ids than the store's learns from it through an id map."""

    tokenizer: str
    """The directory with the student's tokenizer.json."""

    store_tokenizer: str | None = None
    """The one that the store was labelled with. Where it is not the student's, each of its tokens must be one
    of the student's too, and both must cut the store's text alike. Without it, the two must be the same."""


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

    betas: tuple[float, float] = (0.9, 0.95)
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
    """"auto" (an accelerator if there is one), "cpu", "cuda", …"""

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

    trackers: list[Literal["tensorboard", "mlflow", "wandb"]] = []
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
