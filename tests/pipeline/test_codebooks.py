"""A job's codebooks: learned from its own teacher, kept in the store, and never learned twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.audit import audit
from pipeline.codebooks import Learned
from pipeline.job import LabelJob
from pipeline.label import Labeller
from pipeline.prepare import prepare
from pipeline.statistics import cosines
from pipeline.targets.codecs import Codebooks
from pipeline.targets.decoded import EmbeddingTargets
from pipeline.targets.errors import ConfigError, SpecMismatch, UserError
from pipeline.targets.rows import Rows
from pipeline.targets.store import Store
from pipeline.vectors import VectorPilot

MODULE = """
import torch

class Encoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = torch.nn.Conv2d(1, 16, 3, padding=1)
        self.linear = torch.nn.Linear(16, 32)

    def forward(self, image):
        hidden = torch.tanh(self.convolution(image)).mean(dim=(2, 3))
        return {"embedding": self.linear(hidden), "logits": hidden[:, :10]}
"""

MakeJob = Callable[..., LabelJob]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeJob:
    """Jobs whose teacher is a small convolutional encoder: make(bytes, store=…, seed=…)."""
    (tmp_path / "encoder_of_this_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)

    def job(
        count: int = 8, store: str = "store", seed: int = 0, images: int = 600, pilot: int = 500, **more: Any
    ) -> LabelJob:
        path = tmp_path / "images.npy"
        if not path.exists():
            np.save(path, np.random.default_rng(0).normal(size=(images, 1, 6, 6)).astype(np.float32))
        return LabelJob.model_validate(
            {
                "corpus": {
                    "kind": "arrays",
                    "urls": [str(path)],
                    "root": str(tmp_path),
                    "unit_rows": 100,
                },
                "views": {"kind": "arrays", "shape": [1, 6, 6]},
                "teacher": {
                    "kind": "torch",
                    "factory": "encoder_of_this_test:Encoder",
                    "heads": {"embedding": 32, "logits": 10},
                    "device": "cpu",
                },
                "store": {
                    "url": str(tmp_path / store),
                    "seed": seed,
                    "heads": {
                        "embedding": {"kind": "codebooks", "bytes": count, "pilot": pilot},
                        "logits": {"kind": "dense"},
                    },
                },
                **more,
            }
        )

    return job


def label(job: LabelJob, units: int | None = None) -> None:
    labeller = Labeller(job)
    for unit in list(labeller.store.pending())[:units]:
        labeller.label(unit)
    labeller.close()


def books(store: Store) -> Codebooks:
    codec = store.spec.head("embedding").codec
    assert isinstance(codec, Codebooks)
    return codec


def test_they_are_learned_before_labelling_and_the_cosine_that_was_said_is_that_of_the_store(
    make: MakeJob,
) -> None:
    job, learned, told = make(), list[Learned](), list[tuple[str, int, int]]()
    store = prepare(job, learned.append, lambda *what: told.append(what))
    (found,) = learned
    assert (found.head, found.vectors, found.unseen) == ("embedding", 400, 100)
    assert books(store) == found.codec
    assert (found.codec.count, found.codec.size) == (8, 32)
    assert told[0][1:] == (0, 500)
    assert told[-1][1:] == (7, 8)
    label(job)
    # The store's URL is all that a reader needs.
    again = Store.open(store.url)
    rows = Rows.concatenate([rows for commit in again.commits() for rows in again.read(commit)])
    decoded = rows.decode("embedding")
    assert isinstance(decoded, EmbeddingTargets)
    images = rows.inputs["image"]
    assert isinstance(images, np.ndarray)
    from pipeline.teachers import Batch

    said = job.teacher.load()(Batch({"image": images}, np.ones(len(images), dtype=np.int64)))["embedding"]
    kept = cosines(said.numpy(), decoded.vectors)  # type: ignore[union-attr]
    assert kept.mean() == pytest.approx(found.cosine, abs=0.02)
    assert 0.9 < found.low < found.cosine < 1
    assert rows.heads["embedding"]["codes"].shape == (600, 8)
    result = audit(job)
    assert result.findings == ()


def test_a_job_that_goes_on_takes_the_stores_books(
    make: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = prepare(make())
    label(make(), units=2)

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("codebooks were learned again")

    monkeypatch.setattr(VectorPilot, "train", refused)
    np.save(tmp_path / "zz.npy", np.random.default_rng(1).normal(size=(150, 1, 6, 6)).astype(np.float32))
    grown = make(
        corpus={
            "kind": "arrays",
            "urls": [str(tmp_path / "images.npy"), str(tmp_path / "zz.npy")],
            "root": str(tmp_path),
            "unit_rows": 100,
        }
    )
    again = prepare(grown)
    assert again.spec.fingerprint == store.spec.fingerprint
    label(LabelJob.model_validate_json(grown.model_dump_json()))  # as a replica gets it
    assert sum(commit.rows for commit in again.commits()) == 750
    assert again.verify().problems == ()


@pytest.mark.slow
def test_of_two_drivers_that_begin_at_once_both_have_the_books_of_the_first(make: MakeJob) -> None:
    first: list[Store] = []
    second = prepare(make(), lambda found: first.append(prepare(make(pilot=400))))
    assert first
    assert books(second) == books(first[0])
    assert second.spec.fingerprint == first[0].spec.fingerprint


@pytest.mark.slow
def test_they_follow_from_the_job_and_its_seed(make: MakeJob) -> None:
    first, same, other = (
        books(prepare(make(store=name, seed=seed))) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first == same
    assert first.words != other.words


def test_more_bytes_keep_the_direction_better(make: MakeJob) -> None:
    with VectorPilot(make(), "embedding") as pilot:
        pilot.ask(500)
        kept = [pilot.measure(pilot.train(count, 0)).cosine for count in (2, 8, 32)]
    assert kept == sorted(kept)
    assert kept[-1] > 0.999


def test_a_store_with_other_books_is_refused(make: MakeJob) -> None:
    prepare(make(8))
    with pytest.raises(SpecMismatch, match=r"embedding: the job wants codebooks of 16 bytes, .* some of 8"):
        prepare(make(16))
    plain = make(store="plain")
    heads = {"embedding": {"kind": "embedding"}, "logits": {"kind": "dense"}}
    prepare(LabelJob.model_validate(plain.model_dump() | {"store": {"url": plain.store.url, "heads": heads}}))
    with pytest.raises(SpecMismatch, match=r"codebooks of 8 bytes, and the store has none"):
        prepare(plain)


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        (
            {"count": 12},
            ConfigError,
            r"embedding\.bytes: the head has 32 features.* one of 1, 2, 4, 8, 16, 32",
        ),
        ({"images": 300}, UserError, r"has 300 vectors, of which 240 .* 256 at least"),
    ],
)
def test_what_cannot_be_learned_is_said_before_there_is_a_store(
    make: MakeJob, tmp_path: Path, settings: dict[str, Any], error: type, said: str
) -> None:
    with pytest.raises(error, match=said):
        prepare(make(**settings))
    assert not (tmp_path / "store").exists()
