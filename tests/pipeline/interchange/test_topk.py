"""Kept classes become top-k targets: sorted, whole, and honest about what was not kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline.interchange import topk


@st.composite
def kept(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Ids and log-probabilities of some classes of true distributions, in any order; V; and k."""
    size = draw(st.integers(1, 40))
    width = draw(st.integers(1, size))
    targets = draw(st.integers(0, 4))
    logits = draw(arrays.arrays(np.float64, (targets, size), elements=st.floats(-30, 30)))
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    order = np.array([draw(st.permutations(range(size))) for _ in range(targets)], dtype=np.int64)
    ids = order.reshape(targets, size)[:, :width]
    return ids, np.take_along_axis(log_p, ids, 1), size, draw(st.integers(1, 45))


@given(kept())
def test_the_likeliest_are_kept_and_everything_else_is_what_is_missing_from_one(
    case: tuple[np.ndarray, np.ndarray, int, int],
) -> None:
    ids, log_probs, size, k = case
    encoded = topk.encode(ids, log_probs, k, size)
    assert encoded["ids"].shape == (len(ids), min(k, size))
    for target in range(len(ids)):
        given_p = dict(zip(ids[target].tolist(), np.exp(log_probs[target]), strict=True))
        stored = encoded["ids"][target].tolist()
        values = np.exp(encoded["log_probs"][target].astype(float))
        assert len(set(stored)) == len(stored)
        assert (np.diff(values) <= 0).all()
        np.testing.assert_allclose(values, [given_p.get(i, 0.0) for i in stored], rtol=1e-5, atol=1e-12)
        left = [p for i, p in given_p.items() if i not in stored]
        assert max(left, default=0.0) <= values.min() * (1 + 1e-5)
        total = values.sum() + np.exp(float(encoded["tail_log_mass"][target, 0]))
        assert total == pytest.approx(1, abs=1e-5) or min(k, size) == size


def test_rows_shorter_than_k_are_filled_with_classes_of_their_own_and_no_probability() -> None:
    ids = np.array([[3, 9, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    logs = np.array([[-1.0, -2.0, -np.inf, -1e9], [-0.5, -np.inf, -np.inf, -np.inf], [-np.inf] * 4])
    encoded = topk.encode(ids, logs, 4, 10)
    assert encoded["ids"].tolist() == [[3, 9, 8, 7], [1, 9, 8, 7], [9, 8, 7, 6]]
    assert np.isneginf(encoded["log_probs"][:, 2:]).all()
    np.testing.assert_allclose(encoded["tail_log_mass"][2], 0)  # all of its mass is somewhere else


def test_a_sum_that_rounding_brought_above_one_is_scaled_to_one() -> None:
    encoded = topk.encode(np.array([[0, 1]]), np.log([[0.7, 0.32]]), 2, 5)
    assert np.exp(encoded["log_probs"]).sum() == pytest.approx(1)
    assert np.isneginf(encoded["tail_log_mass"]).all()


@pytest.mark.parametrize(
    ("ids", "values", "code", "reason"),
    [
        ([1, 2], [-1.0, np.nan], "non_finite", "not finite"),
        ([1, 2], [-1.0, np.inf], "non_finite", "not finite"),
        ([1, 2], [-0.1, -0.2], "undecodable", "sum to 1.724"),
        ([1, 5], [-1.0, -2.0], "undecodable", "class 5 is not one of 5"),
        ([-1, 2], [-1.0, -2.0], "undecodable", "class -1 is not one of 5"),
        ([2, 2], [-1.0, -2.0], "undecodable", "class 2 stands there twice"),
    ],
)
def test_what_is_no_distribution_is_refused_with_its_reason(
    ids: list[int], values: list[float], code: str, reason: str
) -> None:
    table = np.array([[0, 1], ids]), np.array([[-1.0, -1.0], values])
    with pytest.raises(topk.NoDistribution, match=f"target 1: .*{reason}") as error:
        topk.encode(*table, 2, 5)
    assert error.value.code == code
    assert set(topk.faults(*table, 5)) == {1}


def test_logits_without_their_normaliser_are_shared_out_among_the_kept_classes() -> None:
    values = topk.normalized(np.array([[3.0, 2.0, -np.inf], [-np.inf] * 3, [800.0, 0.0, 0.0]]))
    np.testing.assert_allclose(np.exp(values[0]).sum(), 1)
    assert values[0, 0] - values[0, 1] == pytest.approx(1)
    assert np.isneginf(values[1]).all()
    assert values[2].tolist() == [0, -800, -800]
