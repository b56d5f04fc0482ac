"""Stores of several teachers become one: nothing is paired wrongly, lost, or biased."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.job import LabelJob
from pipeline.label import Labeller
from pipeline.merge import merge
from pipeline.prepare import prepare
from pipeline.targets import convert as conversion
from pipeline.targets.decoded import DenseTargets, SparseTargets
from pipeline.targets.errors import SpecMismatch
from pipeline.targets.rows import Ragged, Rows
from pipeline.targets.store import Store
from pipeline.teachers.fake import Fake, FakeTeacher

MakeJob = Callable[..., LabelJob]
DENSE = {"kind": "dense", "dtype": "float32"}
THRESHOLD = {"kind": "threshold", "threshold": 0.1}


def label(job: LabelJob, leave: int = 0) -> Store:
    store, labeller = prepare(job), Labeller(job)
    pending = list(store.pending())
    for unit in pending[: len(pending) - leave]:
        labeller.label(unit)
    labeller.close()
    return store


def rows_of(store: Store) -> Rows:
    """All rows in the order of the plan."""
    commits = [store.find(unit.id) for unit in store.planned()]
    return Rows.concatenate([rows for commit in commits if commit for rows in store.read(commit)])


def by_name(rows: Rows) -> dict[tuple[str, int], int]:
    return {name: i for i, name in enumerate(zip(rows.keys, rows.view.tolist(), strict=True))}


@pytest.fixture
def pair(make_job: MakeJob) -> Callable[..., dict[str, Store]]:
    """Two teachers' stores of one corpus: make(codec_a, codec_b, unit_bytes of the second)."""

    def make(a: Any = THRESHOLD, b: Any = DENSE, unit_bytes: int = 2000, leave: int = 0) -> dict[str, Store]:
        first = make_job(store="a", heads={"logits": a})
        second = make_job(store="b", heads={"logits": b}, teacher={"seed": 1}, unit_bytes=unit_bytes)
        return {"a": label(first, leave), "b": label(second)}

    return make


@pytest.mark.slow
@pytest.mark.parametrize("unit_bytes", [2000, 700])
def test_a_join_has_every_target_of_both_beside_the_same_tokens(
    pair: Any, tmp_path: Path, unit_bytes: int
) -> None:
    """Whether the second store was cut into the same units or into others."""
    stores = pair(unit_bytes=unit_bytes)
    done = merge(str(tmp_path / "both"), stores, "join")
    assert done.store.verify().problems == ()
    assert (done.refused, done.waiting) == (0, 0)
    joined, sources = rows_of(done.store), {name: rows_of(store) for name, store in stores.items()}
    assert [head.name for head in done.store.spec.heads] == ["a_logits", "b_logits"]
    assert joined.keys == sources["a"].keys
    assert [unit.id for unit in done.store.planned()] == [unit.id for unit in stores["a"].planned()]
    for name, rows in sources.items():
        places = by_name(rows)
        order = np.array([places[key] for key in by_name(joined)])
        for field, array in rows.take(order).heads["logits"].items():
            np.testing.assert_array_equal(joined.heads[f"{name}_logits"][field], array)
    assert done.store.spec.teacher["members"]["b"] == stores["b"].spec.teacher
    assert Store.open(done.store.url).spec.fingerprint == done.store.spec.fingerprint


@pytest.mark.slow
@pytest.mark.parametrize("container", ["parquet", "webdataset", "zarr"])
@pytest.mark.parametrize("mode", ["join", "average"])
def test_a_merge_has_the_container_of_its_first_store_unless_another_is_named(
    pair: Any, tmp_path: Path, container: Any, mode: Any
) -> None:
    stores = pair(DENSE, DENSE)
    sources = dict(stores)
    if container != "parquet":
        sources["a"] = conversion.destination(stores["a"], str(tmp_path / "converted"), container)
        conversion.convert(stores["a"], sources["a"])
    inherited = merge(str(tmp_path / "one"), sources, mode).store
    named = merge(str(tmp_path / "two"), stores, mode, container=container).store
    plain = merge(str(tmp_path / "three"), stores, mode).store
    wanted = rows_of(plain)
    for made in (inherited, named):
        assert Store.open(made.url).spec.container == container
        assert made.verify().problems == ()
        rows = rows_of(made)
        assert rows.keys == wanted.keys
        for head in wanted.heads:
            np.testing.assert_array_equal(rows.heads[head]["logits"], wanted.heads[head]["logits"])
    assert plain.spec.container == "parquet"


@pytest.mark.slow
def test_a_join_of_single_and_token_heads_keeps_the_tokens_counts(make_job: MakeJob, tmp_path: Path) -> None:
    whole = label(make_job(store="one", teacher={"positions": "single"}, heads={"logits": DENSE}))
    tokens = label(make_job(store="each"))
    done = merge(str(tmp_path / "both"), {"one": whole, "each": tokens}, "join")
    assert done.store.verify().problems == ()
    assert done.refused == 0
    np.testing.assert_array_equal(rows_of(done.store).targets, rows_of(tokens).targets)


@pytest.mark.slow
def test_a_row_without_its_partner_or_with_other_inputs_goes_to_quarantine(pair: Any, tmp_path: Path) -> None:
    stores = pair()
    thinned = Store.create(str(tmp_path / "thinned"), stores["b"].spec)
    thinned.write_plan(stores["b"].planned(), {}, 0)
    dropped: set[tuple[str, int]] = set()
    altered: set[tuple[str, int]] = set()
    for commit in stores["b"].commits():
        with thinned.writer(commit.unit) as writer:
            for rows in stores["b"].read(commit):
                tokens = rows.inputs["tokens"]
                assert isinstance(tokens, Ragged)
                values = tokens.values.copy()
                values[tokens.offsets[2]] ^= 1
                altered.add((rows.keys[2], int(rows.view[2])))
                dropped.add((rows.keys[0], int(rows.view[0])))
                changed = dataclasses.replace(rows, inputs={"tokens": Ragged(values, tokens.offsets)})
                writer.write(changed.take(np.arange(1, len(rows))))
            writer.commit(
                records=commit.records,
                statistics={},
                histograms={},
                started=0.0,
                forward_seconds=0.0,
                device="",
            )
    done = merge(str(tmp_path / "both"), {"a": stores["a"], "b": thinned}, "join")
    assert done.store.verify().problems == ()
    found = {
        (item.key, item.view): item.code
        for commit in done.store.commits()
        for item in done.store.quarantined(commit)
    }
    assert found == dict.fromkeys(dropped, "no_partner") | dict.fromkeys(altered, "inputs_differ")
    assert done.refused == len(found)
    assert by_name(rows_of(done.store)).keys() == by_name(rows_of(stores["a"])).keys() - found.keys()


@pytest.mark.slow
@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_an_average_of_dense_stores_is_that_of_the_teachers(pair: Any, tmp_path: Path, average: Any) -> None:
    stores = pair(DENSE, DENSE)
    done = merge(str(tmp_path / "mean"), stores, "average", average)
    assert done.store.verify().problems == ()
    a, b, mean = (rows_of(store).decode("logits") for store in (*stores.values(), done.store))
    assert isinstance(a, DenseTargets)
    assert isinstance(b, DenseTargets)
    assert isinstance(mean, DenseTargets)
    if average == "logits":
        np.testing.assert_allclose(mean.logits, (a.logits + b.logits) / 2, atol=1e-5)
    else:
        p = [np.exp(x.logits) / np.exp(x.logits).sum(axis=1, keepdims=True) for x in (a, b)]
        np.testing.assert_allclose(np.exp(mean.logits), (p[0] + p[1]) / 2, atol=1e-5)


@pytest.mark.slow
def test_an_average_of_sampled_stores_is_unbiased(pair: Any, tmp_path: Path) -> None:
    stores = pair(THRESHOLD, THRESHOLD)
    done = merge(str(tmp_path / "mean"), stores, "average")
    assert done.store.verify().problems == ()
    rows = rows_of(done.store)
    mean = rows.decode("logits")
    assert isinstance(mean, SparseTargets)
    tokens = rows.inputs["tokens"]
    assert isinstance(tokens, Ragged)
    said = np.concatenate([tokens[i][:-1] for i in range(len(rows))])
    tables = [FakeTeacher(Fake(size=128, seed=seed)).logits(said).astype(np.float64) for seed in (0, 1)]
    tables = [z[:, : mean.size] for z in tables]  # the tokenizer has fewer ids than the teachers classes
    p = np.mean([np.exp(z) / np.exp(z).sum(axis=1, keepdims=True) for z in tables], axis=0)
    owner = np.repeat(np.arange(len(said)), np.diff(mean.offsets))
    dense = np.zeros_like(p)
    np.add.at(dense, (owner, mean.ids), mean.weights)
    np.testing.assert_allclose(dense.sum(axis=1), 1, atol=1e-5)
    off = dense - p
    assert abs(off).sum(axis=1).mean() > 0.1  # it is a sample, and no copy of the distribution
    rng = np.random.default_rng(0)
    for _ in range(20):
        d = off @ rng.integers(0, 2, p.shape[1])
        assert abs(d.sum()) < 5 * np.sqrt((d**2).sum())
    rare = off[p < 0.01]
    assert abs(rare.sum()) < 5 * np.sqrt((rare**2).sum())


@pytest.mark.slow
def test_teachers_that_pad_their_logits_differently_are_averaged(make_job: MakeJob, tmp_path: Path) -> None:
    stores = {
        name: label(make_job(store=name, heads={"logits": DENSE}, teacher={"size": size}))
        for name, size in (("narrow", 96), ("wide", 256))
    }
    spec = merge(str(tmp_path / "mean"), stores, "average").store.spec
    assert spec.vocabulary is not None
    assert (spec.head("logits").size, spec.vocabulary.size, spec.vocabulary.padded_size) == (91, 91, 96)


@pytest.mark.slow
def test_what_was_merged_stays_and_what_comes_later_is_added(
    pair: Any, make_job: MakeJob, tmp_path: Path
) -> None:
    stores = pair(leave=2)
    url = str(tmp_path / "both")
    first = merge(url, stores, "join")
    assert first.waiting == 2
    before = {commit.unit: commit.shard_sha256 for commit in first.store.commits()}
    label(make_job(store="a", heads={"logits": THRESHOLD}))
    second = merge(url, stores, "join")
    assert (second.units, second.waiting) == (2, 0)
    after = {commit.unit: commit.shard_sha256 for commit in second.store.commits()}
    assert before.items() <= after.items()
    assert merge(url, stores, "join").units == 0


@pytest.mark.slow
def test_merging_again_elsewhere_gives_the_same_bytes(pair: Any, tmp_path: Path) -> None:
    stores = pair(THRESHOLD, THRESHOLD)
    both = [merge(str(tmp_path / name), stores, "average").store for name in ("x", "y")]
    ours, theirs = ({commit.unit: commit.shard_sha256 for commit in store.commits()} for store in both)
    assert ours == theirs


@pytest.mark.slow
def test_the_destination_draws_other_numbers_than_its_sources(pair: Any, tmp_path: Path) -> None:
    stores = pair(THRESHOLD, THRESHOLD)
    done = merge(str(tmp_path / "mean"), stores, "average")
    assert done.store.spec.seed not in {store.spec.seed for store in stores.values()}


@pytest.mark.slow
def test_what_cannot_be_merged_is_refused_with_the_reason(
    pair: Any, make_job: MakeJob, tmp_path: Path
) -> None:
    topk = {"kind": "topk", "k": 4}
    stores = pair(topk, topk)
    with pytest.raises(SpecMismatch, match="topk, whose average cannot be told"):
        merge(str(tmp_path / "mean"), stores, "average")
    mixed = {"a": stores["a"], "c": label(make_job(store="c", heads={"logits": DENSE}))}
    with pytest.raises(SpecMismatch, match="average"):
        merge(str(tmp_path / "mean"), mixed, "average")
    single = label(make_job(store="single", heads={"logits": DENSE}, teacher={"positions": "single"}))
    with pytest.raises(SpecMismatch, match="only like heads"):
        merge(str(tmp_path / "mean"), {"c": mixed["c"], "single": single}, "average")
    other = dataclasses.replace(
        stores["b"].spec, vocabulary=dataclasses.replace(stores["b"].spec.vocabulary, fingerprint="x")
    )
    elsewhere = Store.create(str(tmp_path / "other"), other)
    with pytest.raises(SpecMismatch, match="different tokenizers"):
        merge(str(tmp_path / "both"), {"a": stores["a"], "b": elsewhere}, "join")
    with pytest.raises(SpecMismatch, match="other settings"):
        merge(stores["a"].url, stores, "join")
