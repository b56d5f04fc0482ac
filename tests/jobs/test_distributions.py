"""What is shown of a target, class by class, is what its codec stored and what kept it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.distributions import distributions
from pipeline.targets.codecs import Codec, Dense, Threshold, TopK
from pipeline.targets.codecs.base import uniforms
from pipeline.targets.decoded import DenseTargets, SparseTargets, Targets, TopKTargets
from pipeline.targets.errors import CorruptShard

SIZE, TARGETS = 50, 40


def teacher(scale: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits and probabilities, [TARGETS, SIZE]."""
    logits = np.random.default_rng(0).normal(0, scale, (TARGETS, SIZE)).astype(np.float32)
    weights = np.exp(logits.astype(np.float64))
    return logits, weights / weights.sum(axis=1, keepdims=True)


def stored(codec: Codec, logits: np.ndarray, key: str = "key") -> Targets:
    return codec.decode(codec.encode(logits, uniforms(0, "logits", key, 0, TARGETS, codec.draws)), SIZE)


def entropy(probabilities: np.ndarray) -> np.ndarray:
    return -(probabilities * np.log(probabilities)).sum(axis=1)


@pytest.mark.parametrize("codec", [Dense(dtype="float32"), TopK(k=7), Threshold(threshold=0.05)])
def test_a_part_of_the_targets_says_the_same_as_all_of_them(codec: Codec) -> None:
    decoded = stored(codec, teacher()[0])
    whole = distributions(decoded, 0, TARGETS)
    for start, stop in ((0, 1), (3, 17), (TARGETS - 1, TARGETS), (5, 5)):
        part = distributions(decoded, start, stop)
        bounds = slice(whole.offsets[start], whole.offsets[stop])
        assert len(part) == stop - start
        np.testing.assert_array_equal(part.ids, whole.ids[bounds])
        np.testing.assert_array_equal(part.probabilities, whole.probabilities[bounds])
        np.testing.assert_array_equal(part.is_head, whole.is_head[bounds])
        np.testing.assert_allclose(part.entropy(), whole.entropy()[start:stop], rtol=1e-12)


def test_dense_targets_are_the_teacher_itself() -> None:
    logits, true = teacher()
    found = distributions(stored(Dense(dtype="float32"), logits), 0, TARGETS)
    assert found.is_head.all()
    np.testing.assert_allclose(found.probabilities.reshape(TARGETS, SIZE), true, rtol=1e-5)
    np.testing.assert_allclose(found.entropy(), entropy(true), rtol=1e-5)
    np.testing.assert_allclose(found.probability(np.full(TARGETS, 9)), true[:, 9], rtol=1e-5)


def test_the_head_is_what_threshold_kept_with_its_probability() -> None:
    logits, true = teacher()
    found = distributions(stored(Threshold(threshold=0.05), logits), 0, TARGETS)
    surely = true[found.targets, found.ids] >= 0.051
    never = true[found.targets, found.ids] < 0.049
    assert found.is_head[surely].all()
    assert not found.is_head[never].any()
    assert never.any()
    kept = found.probabilities[found.is_head]
    np.testing.assert_allclose(kept, true[found.targets, found.ids][found.is_head], rtol=0.1)
    sums = np.bincount(found.targets, weights=found.probabilities)
    np.testing.assert_allclose(sums, 1, rtol=1e-6)


def test_entropy_is_at_most_the_teachers_of_topk_and_on_average_of_draws() -> None:
    logits, true = teacher(1.0)
    assert (distributions(stored(TopK(k=7), logits), 0, TARGETS).entropy() <= entropy(true) + 1e-3).all()
    drawn = [
        distributions(stored(Threshold(threshold=0.05), logits, str(again)), 0, TARGETS).entropy()
        for again in range(50)
    ]
    assert (np.mean(drawn, axis=0) < entropy(true)).all()


@given(
    st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=12), max_size=6),
    st.sampled_from([1, 7, 2**17 + 1, 800_000_000]),
    st.data(),
)
def test_draws_of_one_class_add_up_in_any_vocabulary(
    targets: list[list[int]], apart: int, data: st.DataObject
) -> None:
    heads = [data.draw(st.integers(0, len(target))) for target in targets]
    counts = np.array([len(target) for target in targets], dtype=np.int64)
    decoded = SparseTargets(
        ids=np.array([number * apart for target in targets for number in target], dtype=np.int64),
        weights=np.repeat(1 / counts, counts).astype(np.float32),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        head_counts=np.array(heads, dtype=np.int64),
        size=2**32,
    )
    found = distributions(decoded, 0, len(targets))
    for n, target in enumerate(targets):
        part = slice(found.offsets[n], found.offsets[n + 1])
        expected = sorted(set(target))
        assert found.ids[part].tolist() == [number * apart for number in expected]
        shares = [target.count(number) / len(target) for number in expected]
        np.testing.assert_allclose(found.probabilities[part], shares, rtol=1e-6)
        assert found.is_head[part].tolist() == [number in target[: heads[n]] for number in expected]


ONE = np.ones((1, 1), dtype=np.float32)


@pytest.mark.parametrize(
    ("decoded", "complaint"),
    [
        (DenseTargets(np.full((1, 3), np.nan, dtype=np.float32)), "no number"),
        (DenseTargets(np.full((1, 3), -np.inf, dtype=np.float32)), "no number"),
        (TopKTargets(np.array([[3]]), -ONE, (1.0,), -ONE, 3), "class 3 of 3"),
        (TopKTargets(np.array([[0]]), np.inf * ONE, (1.0,), -ONE, 3), "no number"),
        (SparseTargets(np.array([9]), ONE[0], np.array([0, 1]), np.array([1]), 3), "class 9 of 3"),
        (SparseTargets(np.array([0]), np.nan * ONE[0], np.array([0, 1]), np.array([1]), 3), "no number"),
    ],
)
def test_what_is_no_distribution_is_refused(decoded: Targets, complaint: str) -> None:
    with pytest.raises(CorruptShard, match=complaint):
        distributions(decoded, 0, 1)
