"""Top-k: the right classes in the right order, and a tail mass that is right at every temperature."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.targets.codecs import TopK
from pipeline.targets.codecs.base import Array, Encoded

BETAS = (0.05, 0.25, 0.5, 1.0, 2.0)
IMPLEMENTATIONS = ["numpy", "torch"]


def encode(codec: TopK, implementation: str, logits: Array) -> Encoded:
    none = np.zeros((len(logits), 0))
    if implementation == "torch":
        return codec.encode_torch(torch.from_numpy(logits.copy()), none)
    return codec.encode(logits, none)


def dense_reference(logits: Array, k: int) -> tuple[list[list[int]], Array, Array]:
    """ids, log-probabilities [N, V] and log-masses [N, len(BETAS)], class by class in extended precision."""
    wide = logits.astype(np.longdouble)
    wide -= wide.max(axis=1, keepdims=True)
    log_p = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    ids = [sorted(range(len(row)), key=lambda i: (-row[i], i))[:k] for row in logits]
    masses = np.zeros((len(logits), len(BETAS)), dtype=np.longdouble)
    for n, row in enumerate(log_p):
        tail = np.delete(row, ids[n])
        for b, beta in enumerate(BETAS):
            masses[n, b] = np.exp(beta * tail).sum()
    with np.errstate(divide="ignore"):
        return ids, log_p, np.log(masses)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("size", [9, 1000, 70_000])
@pytest.mark.parametrize("scale", [0.5, 4.0])
def test_tail_mass_is_that_of_the_full_logits_at_every_beta(
    implementation: str, size: int, scale: float
) -> None:
    logits = (np.random.default_rng(size).normal(size=(6, size)) * scale).astype(np.float32)
    codec = TopK(k=8, betas=BETAS, dtype="float32")
    decoded = codec.decode(encode(codec, implementation, logits), size)
    ids, log_p, masses = dense_reference(logits, 8)
    assert decoded.ids.tolist() == ids
    np.testing.assert_allclose(
        decoded.log_probs, np.take_along_axis(log_p, decoded.ids, 1), rtol=0, atol=1e-5
    )
    np.testing.assert_allclose(decoded.tail_log_mass, masses, rtol=0, atol=1e-5)
    assert decoded.betas == BETAS
    assert decoded.size == size


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_tail_far_below_the_rounding_of_the_head_keeps_its_digits(implementation: str) -> None:
    logits = np.full((1, 100), -50.0, dtype=np.float32)
    logits[0, 42] = 0.0
    codec = TopK(k=1, dtype="float32")
    decoded = codec.decode(encode(codec, implementation, logits), 100)
    assert decoded.ids.tolist() == [[42]]
    assert abs(decoded.log_probs[0, 0]) < 1e-12  # 1 - exp of it would be 0
    assert decoded.tail_log_mass[0, 0] == pytest.approx(np.log(99) - 50, abs=1e-5)


@settings(max_examples=150)
@given(
    logits=hnp.arrays(
        np.float32,
        st.tuples(st.integers(0, 8), st.integers(1, 60)),
        elements=st.sampled_from([-np.inf, -1.0, -0.0, 0.0, 1.0, 1.5]) | st.floats(-9, 9, width=32),
    ),
    k=st.integers(1, 70),
)
def test_both_implementations_pick_the_lowest_of_equal_logits(logits: Array, k: int) -> None:
    logits = logits[np.isfinite(logits.max(axis=1))]
    codec = TopK(k=k, betas=BETAS, dtype="float32")
    reference, torched = encode(codec, "numpy", logits), encode(codec, "torch", logits)
    ids, _, masses = dense_reference(logits, k)
    assert reference["ids"].tolist() == torched["ids"].tolist() == ids
    for encoded in (reference, torched):
        np.testing.assert_allclose(encoded["tail_log_mass"], masses, rtol=0, atol=1e-5)
    np.testing.assert_allclose(torched["log_probs"], reference["log_probs"], rtol=0, atol=1e-5)


def test_ties_of_bfloat16_over_a_large_vocabulary_pick_the_lowest_ids() -> None:
    logits = torch.randn(6, 200_000, generator=torch.Generator().manual_seed(0)).bfloat16()
    logits[0] = 0.0
    encoded = TopK().encode_torch(logits, np.zeros((6, 0)))
    expected = np.argsort(-logits.double().numpy(), axis=1, kind="stable")[:, :64]
    np.testing.assert_array_equal(encoded["ids"], expected)
    assert encoded["ids"].max() > 2**17


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("size", [1, 5])
def test_k_of_at_least_all_classes_stores_them_all_and_no_tail(implementation: str, size: int) -> None:
    logits = np.random.default_rng(0).normal(size=(4, size)).astype(np.float32)
    codec = TopK(k=5, betas=BETAS, dtype="float32")
    decoded = codec.decode(encode(codec, implementation, logits), size)
    assert decoded.ids.shape == (4, size)
    np.testing.assert_allclose(np.exp(decoded.log_probs).sum(axis=1), 1, atol=1e-6)
    assert np.isneginf(decoded.tail_log_mass).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_tail_of_excluded_classes_has_no_mass(implementation: str) -> None:
    logits = np.array([[0.0, -np.inf, 1.0, -np.inf, -np.inf]], dtype=np.float32)
    codec = TopK(k=3, betas=BETAS, dtype="float32")
    decoded = codec.decode(encode(codec, implementation, logits), 5)
    assert decoded.ids.tolist() == [[2, 0, 1]]
    assert np.isneginf(decoded.log_probs[0, 2])
    assert np.isneginf(decoded.tail_log_mass).all()


@settings(max_examples=60)
@given(
    logits=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 60)),
        elements=st.sampled_from([-np.inf, -700.0, -1.0, 0.0, 30.0]) | st.floats(-9, 9, width=32),
    ),
    k=st.integers(1, 70),
)
def test_the_slope_is_the_tails_mean_log_probability_at_each_beta(logits: Array, k: int) -> None:
    logits = logits[np.isfinite(logits.max(axis=1))]
    codec = TopK(k=k, betas=BETAS, dtype="float32", slopes=True)
    ids, log_p, masses = dense_reference(logits, k)
    expected = np.zeros((len(logits), len(BETAS)))
    for n, row in enumerate(log_p):
        tail = np.delete(row, ids[n])
        tail = tail[np.isfinite(tail)]
        for b, beta in enumerate(BETAS):
            if len(tail):
                weights = np.exp(beta * tail - (beta * tail).max())
                expected[n, b] = (weights * tail).sum() / weights.sum()
    for implementation in IMPLEMENTATIONS:
        encoded = encode(codec, implementation, logits)
        np.testing.assert_allclose(encoded["tail_slope"], expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(encoded["tail_log_mass"], masses, rtol=1e-6, atol=1e-5)


def test_slopes_add_a_field_and_change_nothing_else() -> None:
    logits = np.random.default_rng(1).normal(size=(5, 300)).astype(np.float32)
    plain, sloped = TopK(betas=BETAS), TopK(betas=BETAS, slopes=True)
    assert "slopes" not in plain.to_json()
    assert sloped.to_json()["slopes"] is True
    first, second = encode(plain, "numpy", logits), encode(sloped, "numpy", logits)
    assert list(second) == [*first, "tail_slope"]
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_statistics_say_how_much_mass_the_head_has(implementation: str) -> None:
    logits = (np.random.default_rng(3).normal(size=(30, 500)) * 3).astype(np.float32)
    codec = TopK(k=7, dtype="float32")
    statistics = codec.statistics(encode(codec, implementation, logits), 500)
    p = np.sort(np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)), axis=1)
    assert statistics["captured_mass"] == pytest.approx(p[:, -7:].sum(axis=1).mean(), abs=1e-5)
    assert statistics["entries"] == 7
    assert statistics["payload_bytes"] == 7 * (2 + 4) + 4
