"""What is said of a codec is what its targets do to a student's gradient."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.fidelity import Comparison, Fidelity, Reference, estimate
from pipeline.targets.codecs import Codec, Dense, Threshold, TopK, TopP


def softmax(logits: Any) -> Any:
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def compared(codec: Codec, logits: Any, seed: int) -> tuple[Fidelity, Any, Any, Any]:
    """What is said, and p, p_hat and q that it is said of, in two parts as a pilot adds them."""
    p = softmax(logits.astype(np.float64))
    q = p.mean(axis=0)
    encoded = codec.encode(logits, np.random.default_rng(seed).random((len(p), codec.draws)))
    decoded = codec.decode(encoded, p.shape[1])
    comparison = Comparison(q)
    half = len(p) // 2
    for part in (slice(0, half), slice(half, None)):
        some = codec.encode(logits[part], np.random.default_rng(seed).random((len(p), codec.draws))[part])
        comparison.add(p[part], Reference.of(p[part], q), codec.decode(some, p.shape[1]))
    return comparison.fidelity(), p, estimate(decoded, q), q


@settings(max_examples=40)
@given(
    seed=st.integers(0, 1000),
    scale=st.floats(0.1, 8),
    codec=st.sampled_from(
        [Threshold(0.05), Threshold(0.3), TopK(3), TopK(50), TopP(0.7, 9), Dense("float32")]
    ),
)
def test_error_and_angle_are_those_of_the_dense_gradients(seed: int, scale: float, codec: Codec) -> None:
    logits = (np.random.default_rng(seed).normal(size=(12, 40)) * scale).astype(np.float32)
    said, p, estimated, q = compared(codec, logits, seed)
    np.testing.assert_allclose(estimated.sum(axis=1), 1, atol=2e-3)
    assert said.targets == 12
    assert said.error == pytest.approx(np.square(estimated - p).sum() / 12, rel=1e-4, abs=1e-6)
    wanted, got = (q - p).ravel(), (q - estimated).ravel()
    cosine = wanted @ got / np.linalg.norm(wanted) / np.linalg.norm(got)
    assert math.cos(math.radians(said.angle)) == pytest.approx(cosine, abs=1e-5)


@pytest.mark.slow
def test_what_is_unbiased_puts_nothing_in_the_wrong_place_and_truncation_does() -> None:
    logits = np.tile(-1.2 * np.log(np.arange(1, 301)), (3000, 1)).astype(np.float32)
    unbiased, *_ = compared(Threshold(0.05), logits, 0)
    truncated, *_ = compared(TopK(5), logits, 0)
    assert unbiased.calibration < 0.01
    few, *_ = compared(Threshold(0.05), logits[:100], 0)
    assert few.calibration > unbiased.calibration
    # The student that spreads top-k's tail is the mean of p itself: here it knows every p, so nothing moves.
    assert truncated.calibration < 0.01
    mixed = np.concatenate([logits[:1500], logits[:1500, ::-1]])
    truncated, *_ = compared(TopK(5), mixed, 0)
    assert truncated.calibration > 0.1
    unbiased, *_ = compared(Threshold(0.05), mixed, 0)
    assert unbiased.calibration < 0.01


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(ValueError, match="no target"):
        Comparison(np.ones(3) / 3).fidelity()
