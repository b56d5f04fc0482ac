"""Top-p: no class more than the mass takes, and all others in the tail."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.targets.codecs import TopP
from pipeline.targets.codecs.base import Array, Encoded

BETAS = (0.05, 0.5, 1.0, 2.0)
IMPLEMENTATIONS = ["numpy", "torch"]


def encode(codec: TopP, implementation: str, logits: Array) -> Encoded:
    none = np.zeros((len(logits), 0))
    if implementation == "torch":
        return codec.encode_torch(torch.from_numpy(logits.copy()), none)
    return codec.encode(logits, none)


def log_softmax(logits: Array) -> Array:
    wide = logits.astype(np.longdouble) - logits.max(axis=1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(axis=1, keepdims=True)))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@settings(max_examples=100)
@given(
    logits=hnp.arrays(
        np.float32,
        st.tuples(st.integers(0, 6), st.integers(1, 60)),
        elements=st.sampled_from([-np.inf, -700.0, -1.0, 0.0, 1.0, 40.0]) | st.floats(-9, 9, width=32),
    ),
    p=st.sampled_from([0.01, 0.5, 0.95, 0.999]) | st.floats(0.001, 0.999),
    k=st.integers(1, 70),
)
def test_the_fewest_likeliest_classes_with_the_mass_are_kept_and_the_rest_is_the_tail(
    implementation: str, logits: Array, p: float, k: int
) -> None:
    logits = logits[np.isfinite(logits.max(axis=1))]
    codec = TopP(p=p, k=k, betas=BETAS, dtype="float32", slopes=True)
    decoded = codec.decode(encode(codec, implementation, logits), logits.shape[1])
    log_p = log_softmax(logits)
    for n, row in enumerate(log_p):
        part = slice(*decoded.offsets[n : n + 2])
        ids, kept = decoded.ids[part], decoded.log_probs[part]
        order = sorted(range(len(row)), key=lambda i: (-logits[n, i], i))
        assert ids.tolist() == order[: len(ids)]
        assert 1 <= len(ids) <= k
        assert np.isfinite(logits[n, ids]).all()
        np.testing.assert_allclose(kept, row[ids], rtol=1e-6, atol=1e-5)
        probabilities = np.exp(row[ids])
        assert probabilities[:-1].sum() < p + 1e-6
        if len(ids) < min(k, np.isfinite(row).sum()):
            assert probabilities.sum() >= p - 1e-6
        tail = np.delete(row, ids)
        tail = tail[np.isfinite(tail)]
        for b, beta in enumerate(BETAS):
            if not len(tail):
                assert np.isneginf(decoded.tail_log_mass[n, b])
                continue
            top = (beta * tail).max()
            weights = np.exp(beta * tail - top)
            assert decoded.tail_log_mass[n, b] == pytest.approx(
                float(top + np.log(weights.sum())), rel=1e-6, abs=2e-5
            )
            assert decoded.tail_slope is not None
            mean = float((weights * tail).sum() / weights.sum())
            assert decoded.tail_slope[n, b] == pytest.approx(mean, rel=2e-5, abs=2e-5)


def test_a_certain_target_costs_one_entry_and_an_uncertain_one_the_cap() -> None:
    logits = np.zeros((2, 1000), dtype=np.float32)
    logits[0, 500] = 40.0
    codec = TopP(p=0.9, k=300)
    encoded = encode(codec, "torch", logits)
    assert encoded["count"].dtype == np.dtype("<u2")
    assert encoded["count"].tolist() == [1, 300]
    assert encoded["ids"].tolist() == [500, *range(300)]
    statistics = codec.statistics(encoded, 1000)
    assert statistics["entries"] == 150.5
    assert statistics["captured_mass"] == pytest.approx((1 + 0.3) / 2, abs=1e-3)


def test_a_target_without_a_class_does_not_decode() -> None:
    codec = TopP()
    encoded = encode(codec, "numpy", np.zeros((2, 3), dtype=np.float32))
    encoded["count"][:] = [6, 0]
    with pytest.raises(ValueError, match="no class"):
        codec.decode(encoded, 3)
