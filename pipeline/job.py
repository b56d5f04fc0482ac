"""A labelling job: corpus, views, teacher, store, and how to run it. One JSON, sent to every replica."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from pipeline.config import Config
from pipeline.corpus import AnySource
from pipeline.targets.codecs import Codebooks, Dense, Embedding, Sampled, Threshold, TopK, TopP
from pipeline.targets.codecs.base import Of
from pipeline.targets.spec import Container, Input
from pipeline.teachers import AnyTeacher
from pipeline.views import AnyViews

StatedCodec = Dense | TopK | TopP | Threshold | Sampled | Embedding
"""Codecs that are known when they are configured; codebooks have to be learned."""

AnyCodec = Annotated[StatedCodec | Codebooks, Field(discriminator="kind")]
"""Every codec, as a store's spec has it."""


class LearnedCodebooks(Config):
    """Codebooks, learned before anything is labelled from what the teacher says of some of the corpus.

    The store's spec has them from then on, and whoever goes on with the job takes them from there.
    """

    of: ClassVar[Of] = "embeddings"

    kind: Literal["codebooks"] = "codebooks"
    """A byte for each part of a vector."""

    bytes: PositiveInt
    """Bytes a vector, of which the head's features are a multiple; 8 to 64 are usual."""

    pilot: int = Field(default=10_000, ge=320)
    """Vectors, from all over the corpus, that the books are learned from (four of five) and measured on."""


HeadCodec = Annotated[StatedCodec | LearnedCodebooks, Field(discriminator="kind")]
"""Every codec, as a job states it."""


class StoreConfig(Config):
    """Where the targets go, and how they are encoded."""

    url: str
    """The store: a directory, or any URL fsspec can write with an honest put-if-absent (s3://bucket/prefix)."""

    options: dict[str, Any] = Field(default_factory=dict)
    """fsspec options of the URL, for example {endpoint_url: …}. Credentials belong in the environment."""

    heads: dict[str, HeadCodec] = Field(min_length=1)
    """The teacher's heads to keep, by name, each with its codec."""

    container: Container = "parquet"
    """How a shard's rows become a file: "parquet", "webdataset" (tar) or "zarr" (v3, zipped)."""

    inputs: Literal["embed", "omit"] = "embed"
    """Whether the shards hold the inputs too, so that the store alone trains a student; token ids always."""

    seed: int = 0
    """Seed of every random draw of an encoding."""


TOKENS_OF_A_BATCH, VIEWS_OF_A_BATCH = 4096, 256


def _vary(inputs: Sequence[Input]) -> bool:
    return any(declared.varies for declared in inputs)


class Batching(Config):
    """How views become batches."""

    budget: PositiveInt | None = None
    """Largest batch, in tokens after padding; for inputs of a fixed size, in views. By default 4,096 tokens
    or 256 views. One that does not fit into memory is cut, and so are those after it."""

    find: bool = False
    """Whether each replica tries larger budgets on its first views, and goes on with the fastest. Batches
    then depend on the machine, and so may the last bits of the teacher's answers."""

    window: PositiveInt = 32
    """Batches that are made at once where lengths vary: of so many, those of like length share one. Rows keep
    the corpus order."""

    packing: PositiveInt | None = None
    """Tokens of a row that several views share, none of which sees another: for causal language models on an
    accelerator, where it leaves no padding. By default each view has a row of its own, and those of like
    length a batch. With flash attention a batch is one row, and this the grain that it is filled by."""

    threads: PositiveInt = 1
    """Threads that render the views of a unit (tokenize, decode images). More than one where a device waits
    for them, which `decant label --profile` tells."""

    prefetch: PositiveInt = 2
    """Batches that may wait between two stages."""

    def largest(self, inputs: Sequence[Input]) -> int:
        """The budget for views with these inputs."""
        return self.budget or (TOKENS_OF_A_BATCH if _vary(inputs) else VIEWS_OF_A_BATCH)

    def content(self, inputs: Sequence[Input]) -> int:
        """What a window has at least, in the budget's unit. Views of one size gain nothing from more."""
        return self.largest(inputs) * (self.window if _vary(inputs) else 1)


class Replicas(Config):
    """The pool of teacher replicas on Ray."""

    min: PositiveInt = 1
    """The job fails if fewer can be placed within `start_timeout_seconds`."""

    max: PositiveInt = 1
    """As many as are asked of the cluster; those it cannot place yet stay pending."""

    cpus: PositiveFloat = 1.0
    """CPUs that Ray reserves for each, and torch threads it uses."""

    gpus: float = Field(default=0.0, ge=0)
    """GPUs that Ray reserves for each; a fraction shares one."""

    units_in_flight: PositiveInt = 2
    """Units of one replica at a time, so that the next opens while the last one uploads."""

    start_timeout_seconds: PositiveFloat = 600.0
    """How long to wait for `min` replicas."""

    grace_seconds: NonNegativeFloat = 20.0
    """How long a replica that is told to leave (SIGTERM, as before a spot machine goes) may go on with its
    units; what is not done by then is left to others. Shorter than the platform's (Kubernetes: 30 s)."""


class Preprocess(Config):
    """Actors without an accelerator that read and render units for the replicas of the ray engine, on nodes
    without GPUs where there are such.
    """

    actors: NonNegativeInt = 0
    """How many; 0: each replica reads and renders by itself. Those that are not placed yet stay pending, and
    the replicas go on by themselves meanwhile."""

    cpus: PositiveFloat = 1.0
    """CPUs that Ray reserves for each. The units that it renders at a time share so many threads."""

    timeout_seconds: PositiveFloat = 300.0
    """How long a replica waits for the next records. After that the actor hangs: it is killed, another is
    asked for, and the replicas that it fed go on by themselves with the unit."""


class LabelConfig(Config):
    """Who labels, and what may fail."""

    engine: Literal["local", "ray"] = "local"
    """"local": in this process. "ray": on actors, here or on the cluster at `address`."""

    address: str | None = None
    """A running Ray cluster ("auto", "ray://…"); by default Ray starts on this machine."""

    replicas: Replicas = Replicas()
    """The pool of the ray engine."""

    preprocess: Preprocess = Preprocess()
    """Who else reads and renders, where that is what the replicas wait for (`decant label --profile`)."""

    attempts: PositiveInt = 3
    """Attempts at a unit, each on a fresh replica if the last one died. One that fails so often is given up;
    one that kills so many is searched for the record that does it, which goes to quarantine."""

    unit_timeout_seconds: PositiveFloat = 3600.0
    """How long a replica of the ray engine may take for a unit, from when it is handed out. One that takes
    longer hangs: it is killed, and its units are tried elsewhere."""

    batching: Batching = Batching()
    """How views become batches."""

    profile: bool = False
    """Tell what the time is spent on, at the end (`decant label --profile`)."""

    max_quarantined: float = Field(default=0.01, ge=0, le=1)
    """Largest share of records that may fail (empty ones do not count) before the job stops."""


class LabelJob(Config):
    """Everything that labelling needs."""

    corpus: AnySource
    """Where the unlabelled records are."""

    views: AnyViews
    """What the teacher sees of a record."""

    teacher: AnyTeacher
    """The model that labels."""

    store: StoreConfig
    """Where the targets go."""

    label: LabelConfig = LabelConfig()
    """Who labels, and what may fail."""
