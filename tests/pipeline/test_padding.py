"""Ids that no tokenizer can produce get no probability: a teacher's wider logits are cut to the tokenizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from pipeline import repair
from pipeline.audit import audit
from pipeline.batching import Item, collate
from pipeline.encoding import Labelled, encode
from pipeline.inference import Answer
from pipeline.job import LabelJob
from pipeline.label import Labeller
from pipeline.pilot import Pilot
from pipeline.prepare import declared, prepare
from pipeline.targets.codecs import Codec, Dense, Sampled, Threshold, TopK, TopP
from pipeline.targets.rows import Rows
from pipeline.targets.spec import Head, Input, Spec
from pipeline.targets.store import Store
from pipeline.teachers.logits import Given, Logits, Mean, Projected, Projection
from pipeline.views.base import View
from tests.byte_level import byte_level
from tests.pipeline.tiny_llama import llama

TEXT = "the heron stands still in shallow water, then strikes: a fish, a frog or an eel. " * 20
PADDED = 384
GARBAGE = {"zero": 0.0, "huge": 1e30, "nan": float("nan")}

CODECS: list[Codec] = [
    Dense(dtype="float32"),
    Threshold(0.05),
    TopK(k=5, betas=(0.5, 1.0)),
    TopP(p=0.9, k=6, betas=(1.0,)),
    Sampled(draws=20),
]
INPUTS = (Input("tokens", "<u2", (None,)),)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(
    codec=st.sampled_from(CODECS),
    kind=st.sampled_from(["given", "projected", "logits", "probabilities"]),
    garbage=st.sampled_from([float("nan"), float("inf"), -float("inf"), 3e38, 0.0]),
    padding=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_what_pads_a_teachers_logits_changes_no_byte(
    codec: Codec, kind: str, garbage: float, padding: int, seed: int
) -> None:
    size, lengths = 13, [5, 2, 7]
    rng = np.random.default_rng(seed)
    items = [
        Item(f"k{i}", i, 0, 1, View({"tokens": rng.integers(size, size=n).astype("<u2")}, n))
        for i, n in enumerate(lengths)
    ]
    part = collate(items, np.arange(len(items)), INPUTS)
    hidden = torch.from_numpy(rng.normal(size=(3, 7, 4)).astype(np.float32))
    weight = torch.from_numpy(rng.normal(0, 2, (size, 4)).astype(np.float32))
    bias = torch.from_numpy(rng.normal(size=size).astype(np.float32))

    def padded(tensor: torch.Tensor, rows: int) -> torch.Tensor:
        return torch.cat([tensor, tensor.new_full((rows, *tensor.shape[1:]), garbage)])

    def logits(rows: int) -> Logits:
        """The same ones with `rows` more classes; an ensemble's members have different ones."""
        lazy = Projected(hidden, Projection(padded(weight, rows), padded(bias, rows), 0.5, 20.0))
        whole = Projected(hidden, Projection(weight, bias, 0.5, 20.0)).whole()
        there = Given(padded(whole.movedim(-1, 0), rows).movedim(0, -1))
        if kind in ("given", "projected"):
            return there if kind == "given" else lazy
        return Mean([lazy, there.first(size + rows // 2)], "logits" if kind == "logits" else "probabilities")

    spec = Spec(INPUTS, (Head("logits", size, "next_token", codec),), {"kind": "x"}, {"kind": "y"})
    made = []
    for rows in (0, padding):
        (labelled,) = encode(Answer(part, {"logits": logits(rows)}, 0.0, lambda: 0.0), spec)
        assert isinstance(labelled, Labelled)
        made.append(labelled)
    assert made[0].rows.to_arrow().equals(made[1].rows.to_arrow(), check_metadata=True)
    assert made[0].means.values() == made[1].means.values()


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tiny llama whose rows beyond its tokenizer hold zeros, huge numbers or NaN: a directory of each."""
    root = tmp_path_factory.mktemp("teachers")
    tokenizer, model = byte_level([TEXT], 300), llama(PADDED)
    for name, value in GARBAGE.items():
        with torch.no_grad():
            for matrix in (model.lm_head.weight, model.model.embed_tokens.weight):
                matrix[tokenizer.get_vocab_size() :] = value
        model.save_pretrained(root / name)
        tokenizer.save(str(root / name / "tokenizer.json"))
    return root


@pytest.fixture
def make(tmp_path: Path, teachers: Path) -> Callable[..., LabelJob]:
    """make(garbage, codec=…) -> a job whose store has the garbage's name."""
    (tmp_path / "corpus").mkdir()
    for i in range(6):
        (tmp_path / "corpus" / f"{i}.txt").write_text(TEXT[7 * i : 300 + 90 * i])

    def job(garbage: str, codec: Any = None, **teacher: Any) -> LabelJob:
        path = str(teachers / garbage)
        return LabelJob.model_validate(
            {
                "corpus": {"kind": "text", "urls": [str(tmp_path / "corpus")], "unit_bytes": 1000},
                "views": {"kind": "token_windows", "tokenizer": path, "length": 48},
                "teacher": teacher or {"kind": "causal_lm", "path": path, "device": "cpu"},
                "store": {
                    "url": str(tmp_path / garbage),
                    "heads": {"logits": codec or {"kind": "threshold", "threshold": 0.05}},
                },
                "label": {"batching": {"budget": 512}},
            }
        )

    return job


def label(job: LabelJob) -> Store:
    store = prepare(job)
    labeller = Labeller(job)
    for unit in store.pending():
        labeller.label(unit)
    labeller.close()
    assert store.verify().problems == ()
    return store


def columns(store: Store) -> dict[str, list[Any]]:
    """All that a store holds of its rows."""
    commits = sorted(store.commits(), key=lambda commit: commit.unit)
    table = Rows.concatenate([rows for commit in commits for rows in store.read(commit)]).to_arrow()
    return dict(table.to_pydict())


@pytest.mark.slow
@pytest.mark.parametrize("codec", [{"kind": "threshold", "threshold": 0.05}, {"kind": "dense"}])
def test_a_models_padded_embedding_changes_nothing_in_the_store(make: Any, codec: Any) -> None:
    """Nor does it keep the model's hidden states from being used in place of its logits."""
    stores = {name: label(make(name, codec)) for name in GARBAGE}
    spec = stores["nan"].spec
    assert spec.vocabulary is not None
    assert spec.head("logits").size == spec.vocabulary.size == 300
    assert spec.vocabulary.padded_size == PADDED
    whole = columns(stores["zero"])
    assert len(whole["key"]) > 6
    for name in ("huge", "nan"):
        assert columns(stores[name]) == whole
        assert make(name).teacher.load().projection is not None
    assert all(commit.quarantined == 0 for store in stores.values() for commit in store.commits())


def test_audit_and_pilot_see_what_is_stored(make: Any) -> None:
    job = make("nan")
    label(job)
    result = audit(job, rows=100)
    assert result.findings == (), result.findings
    (head,) = result.heads
    assert head.equal == head.targets > 100
    points = [Pilot(make(name), 200).measure(Threshold(0.05)) for name in GARBAGE]
    assert points[0] == points[1] == points[2]


@pytest.mark.slow
def test_an_ensemble_of_one_tokenizer_and_two_widths_is_labelled_and_audited(
    make: Any, teachers: Path, tmp_path: Path
) -> None:
    model = LlamaForCausalLM.from_pretrained(teachers / "zero")
    model.resize_token_embeddings(320, mean_resizing=False)
    model.save_pretrained(tmp_path / "narrow")
    paths = [teachers / "nan", tmp_path / "narrow"]
    members = [{"kind": "causal_lm", "path": str(path), "device": "cpu"} for path in paths]
    for average in ("logits", "probabilities"):
        job = make("nan", {"kind": "dense"}, kind="ensemble", members=members, average=average)
        url = str(tmp_path / average)
        job = job.model_copy(update={"store": job.store.model_copy(update={"url": url})})
        spec = label(job).spec
        assert spec.vocabulary is not None
        assert (spec.head("logits").size, spec.vocabulary.padded_size) == (300, 320)
        assert audit(job, rows=20).findings == ()


@pytest.mark.slow
def test_a_store_from_before_logits_were_cut_is_gone_on_with_repaired_and_audited(make: Any) -> None:
    job = make("zero", {"kind": "dense"})
    spec = declared(job)
    heads = tuple(dataclasses.replace(head, size=PADDED) for head in spec.heads)
    old = dataclasses.replace(spec, heads=heads)
    Store.create(job.store.url, old)
    store = label(job)
    assert store.spec == old
    assert Store.open(job.store.url).spec == old
    before = {commit.unit: commit.shard_sha256 for commit in store.commits()}
    result = audit(job, rows=100)
    assert result.findings == (), result.findings
    (head,) = result.heads
    assert head.equal == head.targets > 100
    damaged = next(iter(before))
    (units, lost) = repair.prepare(job, store, [damaged])
    assert ([unit.id for unit in units], lost) == ([damaged], [])
    labeller = Labeller(job)
    for unit in units:
        labeller.label(unit)
    labeller.close()
    assert {commit.unit: commit.shard_sha256 for commit in store.commits()} == before
