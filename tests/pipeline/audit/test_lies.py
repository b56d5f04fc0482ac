"""Each way in which a store that is whole can say what its teacher does not say is found, and named."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.audit import audit
from pipeline.targets.codecs import Threshold
from pipeline.targets.codecs.base import uniforms
from pipeline.targets.rows import Rows
from pipeline.targets.store import Store
from tests.pipeline.audit.stores import CODECS, checks, copy_of, first, label, said, shifted
from tests.pipeline.tiny_llama import SENTENCES


@pytest.mark.slow
@pytest.mark.parametrize("codec", CODECS)
def test_a_teacher_with_one_changed_layer_is_found(
    make: Any, changed_teacher: Path, tmp_path: Path, codec: str
) -> None:
    job, other = make(codec), make(codec, teacher=changed_teacher, store="other")
    honest, lied = label(job), label(other)
    told = audit(make(codec, teacher=changed_teacher, store="store"))
    assert "spec" in checks(told)
    assert "teacher" in first(told, "spec").reason
    # Also where the store declares the right teacher, and only its numbers are of the other.
    copy_of(lied, str(tmp_path / "lie"), honest.spec)
    result = audit(make(codec, store="lie"))
    assert "spec" not in checks(result)
    finding = first(result, "values")
    assert finding.unit is not None
    assert finding.key is not None
    assert finding.position is not None
    assert "another teacher, or other weights" in said(result) or codec in ("threshold", "sampled")
    assert result.heads[0].differing > 0.3 * result.heads[0].targets


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("by", [-1, 1])
def test_targets_shifted_by_one_token_are_found_and_called_that(
    make: Any, tmp_path: Path, codec: str, by: int
) -> None:
    honest = label(make(codec))
    copy_of(honest, str(tmp_path / "lie"), honest.spec, lambda rows: shifted(rows, by))
    result = audit(make(codec, store="lie"))
    assert {"values", "place"} <= checks(result)
    neighbour = "previous" if by == 1 else "next"
    assert f"targets fit the {neighbour} token better than their own: shifted by one" in said(result)
    assert "another teacher" not in said(result)


def test_a_tokenizer_with_two_ids_exchanged_is_found_and_they_are_named(
    make: Any, model_directory: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "exchanged"
    shutil.copytree(model_directory, folder)
    data = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = data["model"]["vocab"]
    from tokenizers import Tokenizer

    used = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(SENTENCES).tokens
    one, two = used[4], used[9]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (folder / "tokenizer.json").write_text(json.dumps(data))
    exchanged = sorted((vocabulary[one], vocabulary[two]))
    honest, lied = label(make()), label(make(teacher=folder, store="other"))
    told = audit(make(teacher=folder))
    assert "spec" in checks(told)
    copy_of(lied, str(tmp_path / "lie"), honest.spec)
    result = audit(make(store="lie"))
    assert checks(result) == {"inputs"}
    assert f"ids {exchanged[0]} and {exchanged[1]} are exchanged" in said(result)
    assert all(finding.unit or "exchanged" in finding.reason for finding in result.findings)


def test_targets_with_two_classes_exchanged_are_found_and_they_are_named(make: Any, tmp_path: Path) -> None:
    def exchanged(rows: Rows) -> Rows:
        logits = rows.heads["logits"]["logits"].copy()
        logits[:, [40, 77]] = logits[:, [77, 40]]
        return dataclasses.replace(rows, heads={"logits": {"logits": logits}})

    honest = label(make("dense"))
    copy_of(honest, str(tmp_path / "lie"), honest.spec, exchanged)
    result = audit(make("dense", store="lie"))
    assert "classes 40 and 77 have each other's probability" in said(result)


@pytest.mark.slow
@pytest.mark.parametrize("renormalised", [True, False])
def test_a_top_k_store_declared_as_threshold_is_found(make: Any, tmp_path: Path, renormalised: bool) -> None:
    """Ten classes a target, with the store's own random numbers, which find no others to draw."""
    dense = label(make("dense", store="dense"))
    honest = label(make("threshold"))
    codec = honest.spec.heads[0].codec
    assert isinstance(codec, Threshold)
    lie = Store.create(str(tmp_path / "lie"), honest.spec)
    lie.write_plan(honest.planned(), {}, 0)
    for commit in dense.commits():
        with lie.writer(commit.unit) as writer:
            for rows in dense.read(commit):
                logits = rows.decode("logits").logits.astype(np.float64)  # type: ignore[union-attr]
                p = np.exp(logits - logits.max(axis=1, keepdims=True))
                p /= p.sum(axis=1, keepdims=True)
                kept = -np.sort(-p, axis=1)[:, 10:11]  # ten classes each
                with np.errstate(divide="ignore"):
                    cut = np.log(np.where(p > kept, p, 0))
                if not renormalised:  # the last of them stands for all that is missing
                    least = np.where(p > kept, p, 2).argmin(axis=1)
                    missing = np.where(p > kept, 0, p).sum(axis=1)
                    rows_ = np.arange(len(p))
                    cut[rows_, least] = np.log(p[rows_, least] + missing)
                draws = np.concatenate(
                    [
                        uniforms(honest.spec.seed, "logits", key, view, count, codec.draws)
                        for key, view, count in zip(
                            rows.keys, rows.view.tolist(), rows.targets.tolist(), strict=True
                        )
                    ]
                )
                encoded = codec.encode(cut.astype(np.float32), draws)
                writer.write(dataclasses.replace(rows, spec=honest.spec, heads={"logits": encoded}))
            writer.commit(
                records=commit.records,
                statistics={},
                histograms={},
                started=0.0,
                forward_seconds=0.0,
                device="cpu",
            )
    result = audit(make(store="lie"))
    assert "values" in checks(result)
    assert "bias" in checks(result), said(result)
    assert "declared threshold but truncated top-k" in said(result)


def tempered(rows: Rows, by: float, seed: int) -> Rows:
    """Dense rows as threshold rows of another temperature, drawn with numbers of no store's seed."""
    dense = rows.decode("logits").logits  # type: ignore[union-attr]
    codec = Threshold(threshold=0.05)
    rng = np.random.default_rng([seed, len(rows)])
    return dataclasses.replace(
        rows, heads={"logits": codec.encode(by * dense.astype(np.float64), rng.random((len(dense), 2)))}
    )


@pytest.mark.slow
@pytest.mark.parametrize(("temper", "biased"), [(1.0, False), (1.03, True)])
def test_bias_is_told_from_chance_though_no_byte_is_as_expected(
    make: Any, tmp_path: Path, temper: float, biased: bool
) -> None:
    honest = label(make("threshold"))
    dense = label(make("dense", store="dense"))
    copy_of(dense, str(tmp_path / "lie"), honest.spec, lambda rows: tempered(rows, temper, seed=3))
    # So tolerant of single values that only the average can tell.
    result = audit(make(store="lie"), rows=10**6, tolerance=0.5 if biased else 0.005)
    (head,) = result.heads
    assert head.equal < 0.5 * head.targets
    assert any(bias.z > 3 for bias in head.biases) == biased
    strict = audit(make(store="lie"), rows=10**6)
    assert any(bias.found for bias in strict.heads[0].biases) == biased
    assert ("biased" in said(strict)) == biased
