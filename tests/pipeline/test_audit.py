"""The audit passes what is true and says what is not: each way to lie, with a real model and tokenizer."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.audit import Audit, Finding, audit
from pipeline.audit.values import Chunk, Noise, compare
from pipeline.job import LabelJob
from pipeline.label import Labeller
from pipeline.prepare import prepare
from pipeline.targets.codecs import Embedding, Threshold
from pipeline.targets.codecs.base import take, uniforms
from pipeline.targets.decoded import EmbeddingTargets
from pipeline.targets.errors import SpecMismatch, UserError
from pipeline.targets.rows import Ragged, Rows
from pipeline.targets.spec import Input, Spec
from pipeline.targets.store import Store

TEXT = (
    "the duck swims on a pond and dives for weeds while geese graze where grass is short near water swans "
    "build large nests of reeds at its edge heron stands still then strikes fish frog or eel in shallow mud"
)
WORDS = TEXT.split()

CODECS: dict[str, dict[str, Any]] = {
    "threshold": {"kind": "threshold", "threshold": 0.05},
    "topk": {"kind": "topk", "k": 8, "betas": [0.5, 1.0]},
    "dense": {"kind": "dense"},
    "topp": {"kind": "topp", "p": 0.9, "k": 20},
    "sampled": {"kind": "sampled", "draws": 50},
}


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama of random weights, large enough for its distributions to differ, with its tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("llama")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.35)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def make(tmp_path: Path, model_directory: Path) -> Callable[..., LabelJob]:
    """Jobs on one corpus of 24 files in several units: make(codec=…, teacher=folder, store=name)."""

    def job(codec: str = "threshold", teacher: Path = model_directory, store: str = "store") -> LabelJob:
        corpus = tmp_path / "corpus"
        if not corpus.exists():
            corpus.mkdir()
            for i in range(24):
                rng = np.random.default_rng(i)
                (corpus / f"{i:02}.txt").write_text(" ".join(rng.choice(WORDS, 20 + 5 * i)))
        return LabelJob.model_validate(
            {
                "corpus": {"kind": "text", "urls": [str(corpus)], "unit_bytes": 3000},
                "views": {"kind": "token_windows", "tokenizer": str(teacher), "length": 48},
                "teacher": {"kind": "causal_lm", "path": str(teacher), "device": "cpu"},
                "store": {"url": str(tmp_path / store), "heads": {"logits": CODECS[codec]}},
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
    return store


def copy_of(store: Store, url: str, spec: Spec, change: Callable[[Rows], Rows] = lambda rows: rows) -> Store:
    """A store with another's plan and rows, these changed, that declares `spec`: a lie told consistently."""
    made = Store.create(url, spec)
    made.write_plan(store.planned(), {}, made.generation())
    for commit in store.commits():
        with made.writer(commit.unit) as writer:
            for rows in store.read(commit):
                writer.write(dataclasses.replace(change(rows), spec=spec))
            writer.commit(
                records=commit.records,
                statistics=commit.statistics,
                histograms=commit.histograms,
                started=0.0,
                forward_seconds=0.0,
                device="cpu",
            )
    return made


def checks(result: Audit) -> set[str]:
    return {finding.check for finding in result.findings}


def said(result: Audit) -> str:
    return "\n".join(map(str, result.findings))


def first(result: Audit, check: str) -> Finding:
    return next(finding for finding in result.findings if finding.check == check)


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
    assert seen[0].heads[0].targets == seen[1].heads[0].targets != seen[2].heads[0].targets
    assert (audit(job, rows=1).rows, audit(job, rows=2, units=16).units) == (1, 2)
    everything = audit(job, rows=10**6, units=100)
    assert everything.rows == sum(commit.rows for commit in Store.open(job.store.url).commits())
    assert everything.heads[0].targets == sum(c.targets for c in Store.open(job.store.url).commits())


def test_a_flipped_bit_is_found(make: Any) -> None:
    job = make()
    store = label(job)
    commit = next(iter(store.commits()))
    path = Path(job.store.url) / str(commit.shard)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    result = audit(job)
    assert checks(result) == {"shard"}
    assert first(result, "shard").unit == commit.unit
    assert "not the bytes that were committed" in said(result)


def test_two_shards_whose_files_were_exchanged_are_found(make: Any, tmp_path: Path) -> None:
    job = make()
    a, b, *_ = label(job).commits()
    paths = [Path(job.store.url) / str(commit.shard) for commit in (a, b)]
    shutil.move(paths[0], tmp_path / "aside")
    shutil.move(paths[1], paths[0])
    shutil.move(tmp_path / "aside", paths[1])
    result = audit(job)
    assert {finding.unit for finding in result.findings} == {a.unit, b.unit}
    assert checks(result) == {"shard"}


def test_two_units_exchanged_with_all_their_checksums_are_found(make: Any) -> None:
    job = make()
    a, b, *_ = sorted(label(job).commits(), key=lambda commit: commit.unit)
    root = Path(job.store.url)
    for mine, other in ((a, b), (b, a)):
        data = (root / str(other.shard)).read_bytes()
        (root / f"new-{mine.unit}").write_bytes(data)
        record = json.loads(mine.to_json())
        record |= {
            name: getattr(other, name)
            for name in ("rows", "targets", "records", "shard_bytes", "quarantined")
        }
        record["shard_sha256"] = hashlib.sha256(data).hexdigest()
        (root / "commits" / f"{mine.unit}.json").write_text(json.dumps(record))
    for commit in (a, b):
        (root / f"new-{commit.unit}").replace(root / str(commit.shard))
    result = audit(job, rows=200)
    assert checks(result) == {"inputs"}
    assert {finding.unit for finding in result.findings} == {a.unit, b.unit}
    for finding, other in zip(sorted(result.findings, key=lambda f: str(f.unit)), (b, a), strict=True):
        assert f"unit {other.unit[:12]}: the shards of the two are exchanged" in finding.reason


@pytest.fixture
def changed_teacher(model_directory: Path, tmp_path: Path) -> Path:
    """The same model but for one layer's matrix, a tenth of which is other numbers."""
    import torch
    from transformers import LlamaForCausalLM

    folder = tmp_path / "changed"
    model = LlamaForCausalLM.from_pretrained(model_directory)
    torch.manual_seed(1)
    with torch.no_grad():
        weight = model.model.layers[1].mlp.down_proj.weight
        weight += 0.1 * weight.std() * torch.randn_like(weight)
    model.save_pretrained(folder)
    shutil.copy(model_directory / "tokenizer.json", folder)
    return folder


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
    def shifted(rows: Rows) -> Rows:
        head = rows.spec.heads[0]
        starts = np.concatenate([[0], np.cumsum(rows.counts(head))])
        order = np.concatenate(
            [np.roll(np.arange(low, high), by) for low, high in itertools.pairwise(starts)]
        )
        moved = take(rows.heads["logits"], head.codec.layout(head.size), order)
        return dataclasses.replace(rows, heads={"logits": moved})

    honest = label(make(codec))
    copy_of(honest, str(tmp_path / "lie"), honest.spec, shifted)
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

    used = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT).tokens
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


def test_a_store_labelled_in_other_batches_and_in_half_precision_passes(make: Any) -> None:
    job = make()
    half = job.model_copy(update={"teacher": job.teacher.model_copy(update={"dtype": "bfloat16"})})
    label(half)
    other = half.label.model_copy(update={"batching": half.label.batching.model_copy(update={"budget": 60})})
    for seed in range(3):
        result = audit(half.model_copy(update={"label": other}), rows=100, seed=seed)
        assert result.findings == (), said(result)


def test_an_imported_store_is_audited_by_its_own_inputs_and_told_from_another_teachers(
    make: Any, tmp_path: Path, changed_teacher: Path
) -> None:
    import torch
    from transformers import LlamaForCausalLM

    honest = label(make("topk"))
    imported = dataclasses.replace(honest.spec, teacher={"kind": "imported", "fingerprint": "unknown"})
    copy_of(honest, str(tmp_path / "import"), imported)
    shutil.rmtree(tmp_path / "corpus")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "none.txt").write_text("nothing of it is left")
    result = audit(make("topk", store="import"))
    assert result.findings == (), said(result)
    assert result.checked["spec"] == result.checked["inputs"] == 0
    assert result.checked["values"] > 500
    # As importers leave it: a class to fill a target up, and positions that are not the teacher's.
    masked = dataclasses.replace(imported, inputs=(*imported.inputs, Input("target_mask", "|u1", (None,))))

    def filled(rows: Rows) -> Rows:
        fields = {name: array.copy() for name, array in rows.heads["logits"].items()}
        fields["log_probs"][::3, -1] = -np.inf
        tokens = rows.inputs["tokens"]
        assert isinstance(tokens, Ragged)
        given = np.ones(len(tokens.values), dtype=np.uint8)
        given[tokens.offsets[:-1] + 2] = given[tokens.offsets[1:] - 1] = 0
        wrong = np.cumsum(np.append(0, rows.targets[:-1])) + 2  # of each row the target at 2
        fields["ids"][wrong[rows.targets > 2]] = np.arange(8)
        inputs = {"tokens": tokens, "target_mask": Ragged(given, tokens.offsets)}
        return dataclasses.replace(rows, spec=masked, inputs=inputs, heads={"logits": fields})

    copy_of(honest, str(tmp_path / "masked"), masked, filled)
    partly = audit(make("topk", store="masked"))
    assert [f for f in partly.findings if f.check != "distribution"] == [], said(partly)
    model = LlamaForCausalLM.from_pretrained(changed_teacher)
    with torch.no_grad():
        model.model.layers[0].self_attn.v_proj.weight.neg_()
    model.save_pretrained(changed_teacher)
    lied = audit(make("topk", store="import", teacher=changed_teacher))
    assert "another teacher, or other weights" in said(lied)


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


def test_a_record_that_changed_in_the_corpus_is_found(make: Any, tmp_path: Path) -> None:
    job = make()
    label(job)
    path = tmp_path / "corpus" / "05.txt"
    path.write_text(path.read_text()[:-3] + "xyz")
    result = audit(job, rows=200)
    assert checks(result) == {"inputs"}
    assert "05.txt" in said(result)
