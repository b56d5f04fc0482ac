"""An honest store passes, whatever its codec, precision, batches and inputs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.audit import audit
from pipeline.audit.values import Chunk, Noise, compare
from pipeline.job import LabelJob
from pipeline.prepare import prepare
from pipeline.targets.codecs import Embedding
from pipeline.targets.decoded import EmbeddingTargets
from pipeline.targets.errors import SpecMismatch, UserError
from pipeline.targets.store import Store
from tests.pipeline.audit.stores import CODECS, checks, copy_of, first, label, said


@pytest.mark.parametrize("codec", CODECS)
def test_an_honest_store_passes_with_every_seed(make: Any, codec: str) -> None:
    job = make(codec)
    label(job)
    for seed in range(3):
        result = audit(job, rows=40, seed=seed)
        assert result.findings == (), said(result)
        assert result.relabelled == result.rows == 40
        (head,) = result.heads
        assert head.targets == result.checked["values"] > 500
        assert head.equal > 0.95 * head.targets
        assert result.checked["shard"] == result.units > 1
        assert result.checked["place"] > 100
        assert bool(head.biases) == (codec in ("threshold", "sampled"))


def test_the_sample_is_a_function_of_the_seed_and_no_row_comes_twice(make: Any) -> None:
    job = make()
    label(job)
    seen = [audit(job, rows=10, units=2, seed=seed) for seed in (0, 0, 1)]
    first, again, other = (found.heads[0].shift for found in seen)
    assert first == again != other
    assert (audit(job, rows=1).rows, audit(job, rows=2, units=16).units) == (1, 2)
    everything = audit(job, rows=10**6, units=100)
    assert everything.rows == sum(commit.rows for commit in Store.open(job.store.url).commits())
    assert everything.heads[0].targets == sum(c.targets for c in Store.open(job.store.url).commits())


@pytest.mark.parametrize("codec", ["dense", "topk", "threshold"])
@pytest.mark.parametrize("inputs", ["embed", "omit"])
def test_targets_of_whole_records_are_audited_too(tmp_path: Path, codec: str, inputs: str) -> None:
    np.save(tmp_path / "images.npy", np.random.default_rng(0).random((60, 1, 4, 4)).astype(np.float32))
    job = LabelJob.model_validate(
        {
            "corpus": {"kind": "arrays", "urls": [str(tmp_path / "images.npy")], "unit_rows": 16},
            "views": {"kind": "arrays", "shape": [1, 4, 4]},
            "teacher": {"kind": "fake", "size": 30, "positions": "single"},
            "store": {"url": str(tmp_path / "store"), "heads": {"logits": CODECS[codec]}, "inputs": inputs},
        }
    )
    honest = label(job)
    result = audit(job)
    assert result.findings == (), said(result)
    assert result.heads[0].targets == result.relabelled == 60
    assert result.checked["place"] == 0
    lied = job.model_copy(update={"store": job.store.model_copy(update={"url": str(tmp_path / "lie")})})
    copy_of(
        honest,
        lied.store.url,
        honest.spec,
        lambda rows: dataclasses.replace(rows, heads=rows.take(np.roll(np.arange(len(rows)), 1)).heads),
    )
    told = audit(lied)
    assert "values" in checks(told)
    assert first(told, "values").position is None


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_vectors_are_compared_up_to_their_rounding(dtype: Any) -> None:
    import torch

    codec, noise = Embedding(dtype=dtype), Noise.of(exact=True, imported=False)
    values = torch.from_numpy(np.random.default_rng(0).normal(size=(6, 32)).astype(np.float32))
    expected = codec.decode(codec.encode_torch(values, np.zeros((6, 0))), 32)
    near = codec.decode(codec.encode_torch(values * (1 + 1e-4), np.zeros((6, 0))), 32)
    off = expected.vectors.copy()
    off[4] = -off[4]
    for stored, wrong in ((expected, []), (near, []), (EmbeddingTargets(off), [4])):
        verdicts = list(compare(Chunk(values, values, stored, expected), codec, noise))
        assert [verdict.at for verdict in verdicts if verdict.reason] == wrong


@pytest.mark.slow
def test_a_store_labelled_in_other_batches_and_in_half_precision_passes(make: Any) -> None:
    job = make()
    half = job.model_copy(update={"teacher": job.teacher.model_copy(update={"dtype": "bfloat16"})})
    label(half)
    other = half.label.model_copy(update={"batching": half.label.batching.model_copy(update={"budget": 60})})
    for seed in range(3):
        result = audit(half.model_copy(update={"label": other}), rows=100, seed=seed)
        assert result.findings == (), said(result)


def test_a_store_with_nothing_in_it_and_a_teacher_with_other_heads_are_refused(
    make: Any, tmp_path: Path
) -> None:
    job = make()
    prepare(job)
    with pytest.raises(UserError, match="nothing is labelled"):
        audit(job)
    fake = job.model_dump(mode="json") | {"teacher": {"kind": "fake", "size": 250}}
    with pytest.raises(SpecMismatch, match="has not the head logits"):
        audit(LabelJob.model_validate(fake))
