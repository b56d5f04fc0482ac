"""What is no distribution is told from what is one, and targets one place off from those in place."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.targets.codecs import Codec, Dense, Embedding, Sampled, Threshold, TopK, TopP
from pipeline.targets.decoded import DenseTargets, SparseTargets, TopKTargets, TopPTargets
from pipeline.targets.errors import CorruptShard
from pipeline.targets.plausibility import SHARDS, check, flaw
from pipeline.targets.shift import FALSE_ALARM, ShiftTest, alarm, label_shift, log_likelihood
from pipeline.targets.store import Store

CODECS: list[Codec] = [
    Dense(),
    Dense("float32"),
    TopK(k=5),
    TopK(k=100, betas=(0.5, 1.0), dtype="float32"),
    TopK(k=5, betas=(0.5,)),
    Threshold(threshold=0.05),
    TopP(p=0.9, k=7, dtype="float32"),
    Sampled(draws=40),
]


def decoded(codec: Codec, logits: np.ndarray[Any, Any], seed: int = 0) -> Any:
    draws = np.random.default_rng(seed).random((len(logits), codec.draws))
    return codec.decode(codec.encode(logits, draws), logits.shape[1])


@given(st.sampled_from(CODECS), st.integers(0, 2**32 - 1), st.floats(0.1, 30), st.integers(1, 300))
def test_what_a_codec_makes_has_no_flaw(codec: Codec, seed: int, scale: float, size: int) -> None:
    rng = np.random.default_rng(seed)
    logits = (scale * rng.normal(size=(7, size))).astype(np.float32)
    logits[3, rng.random(size) < 0.5] = -np.inf
    logits[3, 0] = 0.0
    assert flaw(decoded(codec, logits, seed)) is None


def test_each_flaw_is_named_with_its_target() -> None:
    logits = np.zeros((3, 4), np.float32)
    logits[1, 2] = np.nan
    assert flaw(DenseTargets(logits)) == (1, "its logits are not finite")
    assert flaw(DenseTargets(np.full((1, 4), -np.inf, np.float32))) == (0, "its logits are not finite")
    top = decoded(TopK(k=2), np.random.default_rng(0).normal(size=(3, 9)))
    beyond = top.ids.copy()
    beyond[2, 1] = 9
    assert flaw(dataclasses.replace(top, ids=beyond)) == (2, "a class is beyond the head's 9")
    halved = dataclasses.replace(top, log_probs=top.log_probs - np.log(2, dtype=np.float32))
    found = flaw(halved)
    assert found is not None
    assert "sum to" in found[1]
    sparse = decoded(Threshold(), np.random.default_rng(0).normal(size=(3, 9)))
    assert isinstance(sparse, SparseTargets)
    for change, said in (
        ({"ids": sparse.ids + 5}, "beyond"),
        ({"weights": sparse.weights * 0.9}, "sum to"),
        ({"weights": sparse.weights * np.nan}, "negative or undefined"),
        ({"weights": -sparse.weights}, "negative or undefined"),
    ):
        found = flaw(dataclasses.replace(sparse, **change))
        assert found is not None
        assert said in found[1]


def test_a_vector_that_is_not_finite_is_named() -> None:
    vectors = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    whole = decoded(Embedding(), vectors)
    assert flaw(whole) is None
    broken = whole.vectors.copy()
    broken[2, 1] = np.inf
    assert flaw(dataclasses.replace(whole, vectors=broken)) == (2, "its features are not finite")


def test_the_likelihood_of_a_class_is_that_of_the_dense_distribution_where_it_is_stored() -> None:
    logits = 3 * np.random.default_rng(0).normal(size=(20, 12))
    exact = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    at, classes = np.repeat(np.arange(20), 12), np.tile(np.arange(12), 20)
    for codec in (Dense("float32"), TopK(k=12, dtype="float32")):
        found = log_likelihood(decoded(codec, logits), at, classes).reshape(20, 12)
        np.testing.assert_allclose(found, np.maximum(exact, math.log(1e-4)), atol=1e-4)
    some = decoded(TopK(k=4, dtype="float32"), logits)
    mass = np.exp(log_likelihood(some, at, classes)).reshape(20, 12).sum(axis=1)
    np.testing.assert_allclose(mass, 1, atol=1e-2)  # the tail is shared among what is not stored
    means = np.mean(
        [
            np.exp(log_likelihood(decoded(Threshold(threshold=0.1), logits, seed), at, classes))
            for seed in range(300)
        ],
        axis=0,
    )
    np.testing.assert_allclose(means, np.exp(exact).reshape(-1), atol=0.02)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("shift", [-1, 0, 1])
def test_targets_one_place_off_are_told_by_the_tokens_alone(codec: Codec, shift: int) -> None:
    rng, test = np.random.default_rng(0), ShiftTest()
    for _ in range(10):
        tokens = rng.integers(0, 50, 40)
        logits = rng.normal(size=(39, 50)) + 3 * np.eye(50)[tokens[1:]]
        label_shift(test, decoded(codec, np.roll(logits, shift, axis=0)), tokens)
    assert test.result(margin=0.1).verdict == {-1: "after", 0: None, 1: "before"}[shift]


@given(st.integers(0, 2**32 - 1), st.integers(2, 8), st.booleans())
def test_a_teacher_that_knows_nothing_of_the_text_is_no_reason_to_refuse(
    seed: int, length: int, repeating: bool
) -> None:
    """Also where the text repeats itself, so that one accident is seen a hundred times."""
    rng, test = np.random.default_rng(seed), ShiftTest()
    table = 3 * rng.normal(size=(30, 30))
    for _ in range(20):
        tokens = np.tile(rng.integers(0, 30, length), 10) if repeating else rng.integers(0, 30, 40)
        label_shift(test, decoded(Dense("float32"), table[tokens[:-1]]), tokens)
    assert test.result(margin=0.1).verdict is None


def test_a_row_too_short_for_neighbours_adds_nothing() -> None:
    test = ShiftTest()
    for length in (2, 3):
        tokens = np.arange(length)
        label_shift(test, decoded(Dense(), np.zeros((length - 1, 5))), tokens)
    assert test.result().groups == 0
    assert test.result().verdict is None


def test_the_level_is_that_of_a_sub_gaussian_bound() -> None:
    assert 2 * 10 * math.exp(-(alarm(10) ** 2) / 2) == pytest.approx(FALSE_ALARM)


def test_a_check_reads_few_shards_and_few_rows_whatever_the_store(tmp_path: Path, kit: Any) -> None:
    spec = kit.text_spec(Threshold(threshold=0.05))
    store = Store.create(str(tmp_path / "store"), spec)
    units = kit.make_units(9)
    store.write_plan(units, {}, 0)
    for number, unit in enumerate(units):
        kit.label(store, unit.id, [kit.make_rows(spec, 30, seed=number)])
    read = []
    original = store.read
    store.read = lambda commit: read.append(commit) or original(commit)  # type: ignore[method-assign, func-returns-value]
    found = check(store, list(store.commits()), "logits", 20)
    assert len(read) == found.shards == SHARDS
    assert found.rows == 20
    assert found.targets > 0
    single = check(store, list(store.commits()), "topic", 7)
    assert (single.rows, single.targets, single.shift) == (7, 7, None)


def test_a_target_that_is_no_distribution_is_refused_with_its_record(tmp_path: Path, kit: Any) -> None:
    spec = kit.text_spec(TopK(k=3))
    store = Store.create(str(tmp_path / "store"), spec)
    rows = kit.make_rows(spec, 5)
    fields = dict(rows.heads["logits"])
    fields["log_probs"] = fields["log_probs"] - np.float16(1)
    broken = dataclasses.replace(rows, heads={**rows.heads, "logits": fields})
    (unit,) = kit.make_units(1)
    commit = kit.label(store, unit.id, [broken])
    with pytest.raises(CorruptShard, match=r"target 0 of the head logits of record 'file\.txt#\d'"):
        check(store, [commit], "logits", 5)


def test_decoded_kinds_are_all_looked_at() -> None:
    kinds = {type(decoded(codec, np.zeros((2, 9)))) for codec in CODECS}
    assert kinds == {DenseTargets, TopKTargets, TopPTargets, SparseTargets}
