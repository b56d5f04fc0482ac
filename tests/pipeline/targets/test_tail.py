"""A tail's log-mass between the temperatures at which it was measured: near, and bounded."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.targets.codecs import TopK, TopP
from pipeline.targets.codecs.base import Array
from pipeline.targets.decoded import TopKTargets, TopPTargets
from student.targets import to_torch

BETAS = (0.05, 0.2, 0.5, 1.0, 2.0)
"""Temperatures 20, 5, 2, 1 and 0.5."""

ROUNDING = 3e-7
"""Of float32 arithmetic, as a share of the numbers it works on."""


def targets(codec: TopK | TopP, logits: Array, implementation: str = "numpy") -> TopKTargets | TopPTargets:
    none = np.zeros((len(logits), 0))
    if implementation == "torch":
        return codec.decode(codec.encode_torch(torch.from_numpy(logits.copy()), none), logits.shape[1])
    return codec.decode(codec.encode(logits, none), logits.shape[1])


def true_log_mass(found: TopKTargets | TopPTargets, logits: Array, beta: float) -> Array:
    """From the full logits, in extended precision: of all classes that are not among the stored ones."""
    wide = logits.astype(np.longdouble) - logits.max(axis=1, keepdims=True)
    log_p = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    for n in range(len(logits)):
        stored = (
            found.ids[n] if isinstance(found, TopKTargets) else found.ids[slice(*found.offsets[n : n + 2])]
        )
        log_p[n, stored] = -np.inf
    top = np.maximum((beta * log_p).max(axis=1), np.finfo(np.longdouble).min)
    with np.errstate(divide="ignore"):
        return np.asarray(top + np.log(np.exp(beta * log_p - top[:, None]).sum(axis=1)))


def zipf(size: int, count: int = 8, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    ranks = rng.permuted(np.tile(np.arange(1, size + 1), (count, 1)), axis=1)
    exponents = rng.uniform(0.7, 2.5, (count, 1))
    noise = rng.normal(0, 0.5, ranks.shape)
    return np.asarray(-exponents * np.log(ranks) + noise, dtype=np.float32)


CODECS = [
    TopK(k=4, betas=BETAS, dtype="float32", slopes=True),
    TopK(k=1, betas=(0.05, 2.0), dtype="float32", slopes=True),
    TopP(p=0.7, k=5, betas=BETAS, dtype="float32", slopes=True),
]


@pytest.mark.parametrize("implementation", ["numpy", "torch"])
@pytest.mark.parametrize("codec", CODECS, ids=repr)
@settings(max_examples=100)
@given(
    logits=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.integers(1, 40)),
        elements=st.sampled_from([-np.inf, -740.0, -90.0, 0.0, 40.0]) | st.floats(-20, 20, width=32),
    ),
    temperature=st.floats(0.5, 20),
)
def test_the_interpolated_mass_is_as_near_to_the_dense_one_as_its_bound_says(
    codec: TopK | TopP, implementation: str, logits: Array, temperature: float
) -> None:
    logits = logits[np.isfinite(logits.max(axis=1))]
    found, beta = targets(codec, logits, implementation), 1 / temperature
    true = true_log_mass(found, logits, beta)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value, error = found.tail_log_mass_at(beta), found.tail_error_at(beta)
        low, high = found.tail_bounds_at(beta)
    some = np.isfinite(true)
    assert np.isneginf(value[~some]).all()
    assert (error[~some] == 0).all()
    largest = np.abs(found.tail_log_mass[some]).max(axis=1, initial=0)
    slack = {"numpy": 1e-5, "torch": 4e-5}[implementation] + 4 * ROUNDING * largest
    assert (np.abs(value[some] - true[some]) <= error[some] + slack).all()
    assert (low[some] <= true[some] + slack).all()
    assert (high[some] >= true[some] - slack).all()
    assert (low[some] <= value[some] + slack).all()
    assert (value[some] <= high[some] + slack).all()


@settings(max_examples=40)
@given(seed=st.integers(0, 1000), temperature=st.floats(0.5, 20))
def test_torch_interpolates_as_numpy_does(seed: int, temperature: float) -> None:
    for codec in CODECS:
        found = targets(codec, zipf(50, 3, seed))
        moved: Any = to_torch(found)
        for method in ("tail_log_mass_at", "tail_error_at"):
            ours, theirs = getattr(found, method)(1 / temperature), getattr(moved, method)(1 / temperature)
            assert theirs.dtype == torch.float32
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_five_betas_hold_a_long_tail_to_three_hundredths_of_a_nat() -> None:
    """What docs/codecs.md says; what can be proven of it, convexity's bound, is ten times wider."""
    logits = zipf(50_000)
    found = targets(TopK(k=64, betas=BETAS, slopes=True), logits)
    for temperature in np.geomspace(0.5, 20, 60):
        error = np.abs(
            found.tail_log_mass_at(1 / temperature) - true_log_mass(found, logits, 1 / temperature)
        )
        assert error.max() < 0.03
        assert found.tail_error_at(1 / temperature).max() < 0.31


def test_a_stored_beta_gives_the_stored_number_and_no_error() -> None:
    found = targets(CODECS[0], zipf(100))
    for column, beta in enumerate(BETAS):
        np.testing.assert_array_equal(
            found.tail_log_mass_at(beta * (1 + 1e-8)), found.tail_log_mass[:, column]
        )
        assert not found.tail_error_at(beta).any()


@pytest.mark.parametrize("temperature", [0.49, 20.1])
def test_a_temperature_outside_the_stored_ones_is_refused(temperature: float) -> None:
    found = targets(CODECS[0], zipf(100))
    for method in (found.tail_log_mass_at, found.tail_bounds_at, found.tail_error_at, found.require):
        with pytest.raises(
            ValueError, match=r"not stored at temperature .* \(stored: 20, .*, 0.5, and between\)"
        ):
            method(1 / temperature)


def test_without_slopes_only_the_stored_temperatures_are_known() -> None:
    found = targets(TopK(k=4, betas=BETAS), zipf(100))
    found.require(0.5)
    with pytest.raises(ValueError, match=r"not stored at temperature 3 \(stored: 20, 5, 2, 1, 0.5\)"):
        found.tail_log_mass_at(1 / 3)
