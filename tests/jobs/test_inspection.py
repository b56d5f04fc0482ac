"""What inspect shows of a target is what its codec stored."""

from __future__ import annotations

import numpy as np
import pytest

from jobs.inspection import bars, distribution
from pipeline.targets.codecs import Codec, Dense, Sampled, Threshold, TopK, TopP
from pipeline.targets.codecs.base import uniforms

SIZE, TARGETS = 50, 4


@pytest.mark.parametrize("codec", [Dense(dtype="float32"), TopK(k=7), TopP(p=0.9), Threshold(threshold=0.01)])
def test_the_distribution_of_a_target_is_the_stored_one(codec: Codec) -> None:
    logits = np.random.default_rng(0).normal(0, 3, (TARGETS, SIZE)).astype(np.float32)
    true = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum(1, keepdims=True)
    encoded = codec.encode(logits, uniforms(0, "logits", "key", 0, TARGETS, codec.draws))
    decoded = codec.decode(encoded, SIZE)
    for at in range(TARGETS):
        ids, probabilities = distribution(decoded, at)
        assert len(set(ids.tolist())) == len(ids)
        assert ids[probabilities.argmax()] == logits[at].argmax()
        kept = probabilities > 0.011  # what threshold keeps with its probability
        # threshold's values are a byte each: two neighbours are (0.5 / 0.01) ** (1 / 63) apart.
        error = 0.065 if isinstance(codec, Threshold) else 2e-3
        np.testing.assert_allclose(probabilities[kept], true[at][ids[kept]], rtol=error, atol=2e-3)
        if not isinstance(codec, TopK | TopP):
            assert probabilities.sum() == pytest.approx(1, abs=1e-3)


def test_random_samplings_shares_are_shown() -> None:
    codec = Sampled(10)
    decoded = codec.decode(codec.encode(np.array([[0.0, 0.0, -50.0]]), np.array([[0.2] * 3 + [0.7] * 7])), 3)
    ids, probabilities = distribution(decoded, 0)
    assert ids.tolist() == [0, 1]
    np.testing.assert_allclose(probabilities, [0.3, 0.7], rtol=1e-6)


def test_a_histogram_is_drawn_up_to_its_last_bin() -> None:
    assert bars([0, 0]) == ""
    assert bars([1, 0, 8, 0]) == "0 ▁ █ 0.75 nats"
