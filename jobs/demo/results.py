"""What the demo found, as one JSON file that the report is drawn from. Knows neither how nor what is drawn.

Times called `*_seconds` are durations; `at`, `started` and `finished` are seconds since the labelling began.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from pipeline.config import Config

Settings = dict[str, str | int | float | bool | None]


class Machine(Config):
    """Where it ran."""

    cpus: int
    """Processors that this process may use."""

    python: str
    """Version of Python."""

    torch: str
    """Version of torch."""

    ray: str
    """Version of Ray."""

    platform: str
    """Operating system and architecture."""


class TeacherResult(Config):
    """The causal LM that labels."""

    parameters: int
    """Weights, the embedding (tied with the head) counted once."""

    train_tokens: int
    """Tokens it was trained on, repeats counted."""

    train_seconds: float
    """Seconds of its training; of the run that made it, when it was kept from an earlier one."""

    reused: bool
    """Whether it was kept from an earlier run."""

    val_nll: float
    """Nats per token on the held-out shards of the store, from the commit records' statistics."""


class CommittedUnit(Config):
    """One shard of the store, on the timeline of the labelling."""

    unit: str
    """The unit's id."""

    replica: str
    """The replica that committed it."""

    started: float
    """When the unit's work began, in seconds since the labelling began."""

    finished: float
    """When it was committed, in seconds since the labelling began."""

    records: int
    """Records of the unit."""

    targets: int
    """Targets (for text: tokens with a teacher's distribution)."""

    shard_bytes: int
    """Size of the shard's file."""


class Kill(Config):
    """The kill -9 that the demo does to one of its own replicas."""

    at: float
    """Seconds since the labelling began."""

    replica: str
    """Which one."""

    committed: int
    """Units committed until then."""

    recovered: float | None
    """When the replica that took its place committed its first unit; None when nothing was left for it."""


class Labelling(Config):
    """The labelling run."""

    seconds: float
    """From the first replica's start to the last commit."""

    units: list[CommittedUnit]
    """In the order they were committed."""

    kill: Kill | None
    """None when a store that was complete already was reused."""

    records_planned: int
    """Records that the labelled part of the corpus holds, counted by reading it."""

    records_labelled: int
    """Records with rows in the store."""

    records_quarantined: int
    """Records in quarantine (empty files, for example)."""

    records_lost: int
    """Planned records found in neither: 0, or the demo fails."""

    records_doubled: int
    """Records found more than once: 0, or the demo fails."""


class Bytes(Config):
    """What one target would cost, and what it costs."""

    shards: float
    """Bytes per target of the shards' files, everything counted: ids, values, token ids, keys, checksums."""

    store: float
    """The same with commit records, plan, manifest and quarantine."""

    dense_float32: float
    """All V logits in float32, 4 V."""

    dense_float16: float
    """All V logits in float16, 2 V."""

    topk: dict[int, float]
    """By k: ids in 2 (or 4) bytes, float16 values, and the tail's mass in float32."""


class StoreResult(Config):
    """The store of a leg."""

    url: str
    """Where it is."""

    codec: Settings
    """The head's codec as its JSON."""

    vocabulary: int
    """Classes V of the head."""

    units: int
    """Units, one shard each."""

    records: int
    """Records labelled."""

    rows: int
    """Rows (views)."""

    targets: int
    """Targets."""

    bytes: int
    """Size of all files of the store."""

    shard_bytes: int
    """Size of the shards alone."""

    bytes_per_target: Bytes
    """What a target costs."""

    entries_per_target: float | None
    """Mean number of stored (id, value) entries of a target; None for a dense codec."""

    captured_mass: float | None
    """Mean probability of the entries that are kept, not drawn."""

    entropy_mean: float
    """Mean entropy of the teacher's distributions, nats."""

    entropy_histogram: list[int]
    """Targets by entropy: 40 bins of 0.25 nats, the last one open."""

    verified_shards: int
    """Shards whose checksum and content were verified."""

    problems: int
    """Problems that verification found: 0, or the demo fails."""


class CurvePoint(Config):
    """A student's validation at one step."""

    step: int
    """Optimiser steps so far."""

    val_nll: float
    """Nats per token on the store's held-out shards."""


class StudentRun(Config):
    """One student of one seed."""

    name: str
    """"tokens" (hard labels alone) or "store" (the teacher's targets)."""

    seed: int
    """Of the initial weights and the order of batches, the same for both students."""

    curve: list[CurvePoint]
    """Ascending in step; the last is the final one."""

    seconds: float
    """Training, evaluations left out."""

    @property
    def final(self) -> float:
        """The last validation loss, nats per token."""
        return self.curve[-1].val_nll


class TextLeg(Config):
    """The text leg: Python sources, a causal LM, two students."""

    settings: Settings
    """What was set: corpus bytes, vocabulary, sizes, steps, learning rates, threshold."""

    corpus_files: int
    """Source files found."""

    corpus_bytes: int
    """Their size."""

    teacher: TeacherResult
    """The teacher."""

    labelling: Labelling
    """The labelling run and its kill."""

    store: StoreResult
    """The store."""

    student_parameters: int
    """Weights of a student, the embedding counted once."""

    students: list[StudentRun]
    """Two of every seed: "tokens" and "store"."""

    seconds: float
    """The whole leg."""

    def finals(self, name: str) -> list[float]:
        """Final validation loss of every seed of the students called so, by seed."""
        runs = sorted((run for run in self.students if run.name == name), key=lambda run: run.seed)
        return [run.final for run in runs]


class DigitsRow(Config):
    """One line of the digits leg's table."""

    name: str
    """How it learned, for example "L2 on logits"."""

    kind: Literal["teacher", "member", "few", "store", "all"]
    """What it is: the teacher, its members alone, or a student by where its targets come from: few labels,
    the store, or all the labels."""

    teaches: str
    """What it learned from, in words: "38 labels (3 %)", "the store" or "all 1,257 labels"."""

    labels: int
    """Labels that it was given itself."""

    parameters: int
    """Weights."""

    examples: int
    """Different training examples it saw."""

    test_errors: list[float]
    """Share of the test digits that it gets wrong, by seed (of the members: by member); [0, 1]."""


class DigitSample(Config):
    """An unlabelled digit and what the store says of it."""

    pixels: list[int]
    """8 x 8 pixels in [0, 255], row by row, 255 the ink."""

    probabilities: list[float]
    """The teacher's, at temperature 1, of the digits 0 to 9."""


class DigitsLeg(Config):
    """The digits leg: an ensemble, jittered unlabelled digits, shallow mimic students."""

    settings: Settings
    """What was set: members, jitter, examples, bottleneck, temperature, steps."""

    store: StoreResult
    """The store of the ensemble's logits."""

    labelling_seconds: float
    """Seconds of the labelling."""

    test_examples: int
    """Digits in the test set."""

    table: list[DigitsRow]
    """From the ensemble down to the students."""

    samples: list[DigitSample]
    """Some rows of the store: the first ones, then those that the teacher is least sure of."""

    seconds: float
    """The whole leg."""


class DemoResults(Config):
    """All that the demo found."""

    version: str
    """Of Decant."""

    finished_at: str
    """ISO 8601, UTC."""

    machine: Machine
    """Where it ran."""

    seconds: float = Field(ge=0)
    """The whole demo."""

    text: TextLeg | None
    """None when the leg was left out."""

    digits: DigitsLeg | None
    """None when the leg was left out."""

    def write(self, path: Path) -> None:
        """As indented JSON, replacing the file at once."""
        temporary = path.with_suffix(".tmp")
        temporary.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        temporary.replace(path)

    @classmethod
    def read(cls, path: Path) -> DemoResults:
        """Raises pydantic.ValidationError for a file of another form."""
        return cls.model_validate_json(path.read_bytes())
