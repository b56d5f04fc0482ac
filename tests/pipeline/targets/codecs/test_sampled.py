"""Random Sampling KD: weights that sum to one, right on average, and never on a class without mass."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.targets.codecs import Sampled
from pipeline.targets.codecs.base import Array, Encoded, uniforms

IMPLEMENTATIONS = ["numpy", "torch"]


def encode(codec: Sampled, implementation: str, logits: Array, drawn: Array) -> Encoded:
    if implementation == "torch":
        return codec.encode_torch(torch.from_numpy(logits.copy()), drawn)
    return codec.encode(logits, drawn)


def softmax(logits: Array) -> Array:
    p = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return np.asarray(p / p.sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@settings(max_examples=80)
@given(
    logits=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.integers(1, 100)),
        elements=st.floats(-12, 12, width=32) | st.sampled_from([0.0, -740.0, -90.0, -np.inf, 30.0]),
    ),
    draws=st.integers(1, 400),
    seed=st.integers(0, 1000),
    end=st.sampled_from([0.0, np.nextafter(1.0, 0.0), 0.5]),
)
def test_every_draw_is_counted_once_on_a_class_that_has_mass(
    implementation: str, logits: Array, draws: int, seed: int, end: float
) -> None:
    logits[:, 0] = np.where(np.isneginf(logits).all(axis=1), 0.0, logits[:, 0])
    codec = Sampled(draws)
    assert codec.draws == draws
    drawn = np.random.default_rng(seed).random((len(logits), draws))
    drawn[:, 0] = end
    encoded = encode(codec, implementation, logits, drawn)
    targets = codec.decode(encoded, logits.shape[1])
    for n in range(len(logits)):
        part = slice(*targets.offsets[n : n + 2])
        ids, weights = targets.ids[part], targets.weights[part].astype(np.float64)
        assert (np.diff(ids) > 0).all()
        assert (softmax(logits)[n, ids] > 0).all()
        assert encoded["hits"][part].sum() == draws
        assert weights.sum() == pytest.approx(1, abs=1e-6)
    assert not targets.head_counts.any()


@settings(max_examples=40)
@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 8))
def test_both_implementations_draw_the_same_but_at_borders(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    logits, codec = (rng.normal(size=(4, 200)) * scale).astype(np.float32), Sampled(100)
    drawn = rng.random((4, 100))
    running = np.cumsum(softmax(logits), axis=1)
    distance = np.abs(running[:, :, None] - drawn[:, None, :]).min(axis=1)
    drawn[distance < 1e-6] = 0.0  # nowhere near a border: the first class's own
    reference, torched = encode(codec, "numpy", logits, drawn), encode(codec, "torch", logits, drawn)
    assert all(reference[name].tobytes() == torched[name].tobytes() for name in reference)


def test_the_mean_of_many_encodings_is_the_distribution() -> None:
    """Over R independent encodings each of 12 classes is within 5 standard errors: level below 12 x 6e-7."""
    repeats, codec = 2000, Sampled(20)
    logits = (np.random.default_rng(0).normal(size=12) * 2).astype(np.float32)
    drawn = np.random.default_rng(1).random((repeats, 20))
    targets = codec.decode(codec.encode_torch(torch.from_numpy(np.tile(logits, (repeats, 1))), drawn), 12)
    mean = np.bincount(targets.ids, targets.weights, 12) / repeats
    p = softmax(logits)
    assert (np.abs(mean - p) <= 5 * np.sqrt(p * (1 - p) / 20 / repeats) + 1e-7).all()


def test_the_draws_follow_from_the_stores_seed_and_the_row() -> None:
    codec = Sampled(50)
    logits = np.random.default_rng(0).normal(size=(3, 1000)).astype(np.float32)
    first, again, other = (
        codec.encode(logits, uniforms(seed, "logits", "key", 0, 3, codec.draws)) for seed in (7, 7, 8)
    )
    assert first["ids"].tobytes() == again["ids"].tobytes()
    assert first["ids"].tobytes() != other["ids"].tobytes()


def test_a_certain_target_costs_one_entry_and_statistics_say_so() -> None:
    logits = np.array([[40.0, 0, 0, 0], [0, 0, 0, 0]], dtype=np.float32)
    codec = Sampled(300)
    encoded = codec.encode(logits, np.random.default_rng(0).random((2, 300)))
    assert encoded["count"].tolist() == [1, 4]
    assert encoded["hits"].dtype == np.dtype("<u2")
    assert codec.statistics(encoded, 4) == {
        "entries": 2.5,
        "captured_mass": 0.0,
        "payload_bytes": (2 * 2 + 5 * (2 + 2)) / 2,
    }
    assert math.isclose(float(codec.decode(encoded, 4).weights[0]), 1.0)
