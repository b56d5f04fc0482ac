"""Threshold: exact in sum, unbiased class by class, and never worse than sampling with replacement."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.targets.codecs import Threshold
from pipeline.targets.codecs.base import Array, Encoded, offsets_of, uniforms
from pipeline.targets.codecs.threshold import PARTS, VALUES
from pipeline.targets.decoded import SparseTargets

IMPLEMENTATIONS = ["numpy", "torch"]


def encode(codec: Threshold, implementation: str, logits: Array, drawn: Array) -> Encoded:
    if implementation == "torch":
        return codec.encode_torch(torch.from_numpy(logits.copy()), drawn)
    return codec.encode(logits, drawn)


def softmax(logits: Array) -> Array:
    p = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return np.asarray(p / p.sum(axis=-1, keepdims=True))


def zipf_logits(exponents: Array, size: int, seed: int = 0) -> Array:
    """Targets whose n-th likeliest class has a probability like n ** -exponent, in an order of their own."""
    rng = np.random.default_rng(seed)
    ranks = rng.permuted(np.tile(np.arange(1, size + 1), (len(exponents), 1)), axis=1)
    return np.asarray(-exponents[:, None] * np.log(ranks), dtype=np.float32)


def dense(targets: SparseTargets) -> Array:
    """What the entries stand for, float64 [N, V]."""
    out = np.zeros((len(targets.offsets) - 1, targets.size))
    np.add.at(out, (np.repeat(np.arange(len(out)), np.diff(targets.offsets)), targets.ids), targets.weights)
    return out


@st.composite
def cases(draw: st.DrawFn) -> tuple[Threshold, Array, Array]:
    """Any threshold, up to 5 targets of up to 150 classes: ties, peaks, tiny tails, excluded classes."""
    codec = Threshold(draw(st.sampled_from([1 / 4096, 1 / 255, 0.02, 0.1, 0.5]) | st.floats(1 / 4096, 0.5)))
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 150)))
    values = st.floats(-12, 12, width=32) | st.sampled_from([0.0, 1.0, -740.0, -90.0, -np.inf, 30.0])
    logits = draw(hnp.arrays(np.float32, shape, elements=values))
    logits[:, draw(st.integers(0, shape[1] - 1))] = draw(st.sampled_from([0.0, 5.0, 30.0]))
    ends = st.floats(0, 1, exclude_max=True) | st.sampled_from([0.0, np.nextafter(1.0, 0.0)])
    return codec, logits, draw(hnp.arrays(np.float64, (shape[0], 2), elements=ends))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@settings(max_examples=80)
@given(case=cases())
def test_every_target_is_a_distribution_that_keeps_its_head_and_samples_only_its_tail(
    implementation: str, case: tuple[Threshold, Array, Array]
) -> None:
    codec, logits, drawn = case
    size, threshold = logits.shape[1], codec.threshold
    part = threshold / PARTS
    encoded = encode(codec, implementation, logits, drawn)
    targets = codec.decode(encoded, size)
    heads, counts = encoded["head_count"].astype(int), encoded["count"].astype(int)
    assert (counts <= 1 / threshold + 1).all()
    p = softmax(logits)
    for n in range(len(logits)):
        entries = slice(*targets.offsets[n : n + 2])
        ids, weights = targets.ids[entries], targets.weights[entries].astype(np.float64)
        head, tail = ids[: heads[n]], ids[heads[n] :]
        assert targets.head_counts[n] == heads[n]
        assert (np.diff(head[1:]) > 0).all()
        assert (np.diff(tail) >= 0).all()
        assert len(set(head)) == len(head)
        assert not set(head) & set(tail)
        assert (p[n, head] >= threshold * (1 - 1e-6)).all()
        assert set(np.flatnonzero(p[n] >= threshold * (1 + 1e-6))) <= set(head)
        assert (p[n, head] <= p[n, head[:1]] * (1 + 1e-6)).all()
        assert np.isfinite(logits[n, ids]).all()
        assert (weights > 0).all()
        assert weights.sum() == pytest.approx(1, abs=1e-6)
        mass = np.delete(p[n], head).sum()
        assert weights[heads[n] :].sum() == pytest.approx(mass, abs=part + 1e-6)
        step = (0.5 / threshold) ** (1 / (VALUES - 1)) - 1
        off = np.abs(weights[: heads[n]] - p[n, head])
        assert (off[1:] <= step * p[n, head[1:]] + 1e-6).all()
        assert off[:1].max(initial=0) <= step * p[n, head[1:]].max(initial=0) + part + 1e-6
        # Systematic draws hit a class as often as its mass says, rounded down or up.
        if len(tail):
            expected = p[n] * len(tail) / mass
            hits = np.bincount(tail, minlength=size)
            assert (hits[tail] < expected[tail] + 1 + 1e-4).all()
        if heads[n]:
            assert mass / threshold - 0.07 <= len(tail) < mass / threshold + 1.07
        else:
            assert len(tail) == np.ceil(1 / threshold)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@settings(max_examples=30)
@given(case=cases())
def test_the_same_uniforms_give_the_same_bytes(
    implementation: str, case: tuple[Threshold, Array, Array]
) -> None:
    codec, logits, drawn = case
    first, second = (encode(codec, implementation, logits, drawn) for _ in range(2))
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)


def entries_of(targets: SparseTargets, n: int) -> tuple[list[int], list[float], int]:
    entries = slice(*targets.offsets[n : n + 2])
    return targets.ids[entries].tolist(), targets.weights[entries].tolist(), int(targets.head_counts[n])


@pytest.mark.parametrize(("size", "scale"), [(300, 3.0), (1000, 2.0), (20_000, 3.0)])
def test_torch_gives_the_reference_except_for_a_neighbour_where_rounding_decides(
    size: int, scale: float
) -> None:
    rng = np.random.default_rng(size)
    count = 1500 if size < 5000 else 200
    logits = (rng.normal(size=(count, size)) * scale).astype(np.float32)
    codec, drawn = Threshold(), rng.random((count, 2))
    reference = codec.decode(codec.encode(logits, drawn), size)
    single = codec.decode(codec.encode_torch(torch.from_numpy(logits), drawn), size)
    double = codec.decode(codec.encode_torch(torch.from_numpy(logits).double(), drawn), size)
    assert all(entries_of(double, n) == entries_of(reference, n) for n in range(count))
    differs = [n for n in range(count) if entries_of(single, n) != entries_of(reference, n)]
    assert len(differs) <= 0.005 * count
    apart = np.abs(dense(single)[differs] - dense(reference)[differs]).sum(axis=1)
    # One draw moved, or the rounding of two values.
    assert (apart <= 2 * codec.threshold + 0.12).all()


TRIALS, CLASSES, LEVEL = 8_000, 120, 1e-6
"""Under the null each call of `biased_classes` finds anything with a probability of at most LEVEL."""


def biased_classes(p: Array, threshold: float, targets: SparseTargets) -> list[int]:
    """Classes whose mean weight is further from p than chance allows.

    Bernstein's inequality for each class, over independent trials, with the codec's own variance, and
    Bonferroni over the classes: rigorous for rare classes too, where a z-test would not be. The variances
    follow from the module's docstring: a head class is on its two neighbours in the progression, the
    likeliest is off by less than one such step and one part of the tail; a tail class has f or f + 1 hits of
    n, times a tail total that is on its two neighbours.
    """
    trials = len(targets.offsets) - 1
    mean = np.bincount(targets.ids, targets.weights.astype(np.float64), minlength=len(p)) / trials
    is_tail = p < threshold
    total = max(p[is_tail].sum(), 1e-300)
    step, part = (0.5 / threshold) ** (1 / (VALUES - 1)) - 1, threshold / PARTS
    others = np.delete(p, p.argmax())
    bound = np.where(
        np.arange(len(p)) == p.argmax(), step * others[others >= threshold].max(initial=0) + part, step * p
    )
    variance = np.where(np.arange(len(p)) == p.argmax(), bound**2, bound**2 / 4)
    counts = {max(1, int(np.ceil(total / threshold + shift / PARTS))) for shift in (-1, 1)}
    for n in counts if (~is_tail).any() else {int(np.ceil(1 / threshold))}:
        expected = p * n / total
        lower = np.floor(expected)
        second_moment = (lower**2 + (expected - lower) * (2 * lower + 1)) / n**2 * (total**2 + part**2 / 4)
        variance = np.where(is_tail, np.maximum(variance, second_moment - p**2), variance)
        bound = np.where(is_tail, np.maximum(bound, (lower + 1) / n * (total + part)), bound)
    log_term = np.log(2 * len(p) / LEVEL)
    allowed = np.sqrt(2 * variance * log_term / trials) + 2 * bound * log_term / (3 * trials)
    # float32: of the weights, and of the torch implementation's probabilities.
    return np.flatnonzero(np.abs(mean - p) > allowed + 3e-7 * p).tolist()


def trials(implementation: str, codec: Threshold, logits: Array, drawn: Array) -> SparseTargets:
    repeated = np.tile(logits, (len(drawn), 1))
    return codec.decode(encode(codec, implementation, repeated, drawn), logits.shape[1])


TEACHERS = {
    "zipf": zipf_logits(np.array([1.1]), CLASSES),
    "flat": np.linspace(0, 0.3, CLASSES, dtype=np.float32)[None],
    "certain": np.where(np.arange(CLASSES) == 7, 0, -16 + 0.01 * np.arange(CLASSES))[None].astype(np.float32),
    "two": np.where(np.arange(CLASSES) < 2, 0, -3)[None].astype(np.float32),
}


@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("threshold", [0.02, 0.3])
def test_the_mean_over_many_encodings_is_the_teachers_distribution(
    implementation: str, threshold: float, teacher: str
) -> None:
    """Error level 1e-6 for each case, over all classes together; the seed is fixed."""
    logits = TEACHERS[teacher]
    drawn = uniforms(0, "logits", teacher, 0, TRIALS, 2)
    targets = trials(implementation, Threshold(threshold), logits, drawn)
    assert biased_classes(softmax(logits)[0], threshold, targets) == []


def nearest_grid_value(codec: Threshold, logits: Array, drawn: Array) -> SparseTargets:
    """Rounds to the nearest instead of at random."""
    return trials("numpy", codec, logits, np.stack([drawn[:, 0], np.full(len(drawn), 0.5)], axis=1))


def fixed_points(codec: Threshold, logits: Array, drawn: Array) -> SparseTargets:
    """Draws the same points every time."""
    return trials("numpy", codec, logits, np.stack([np.full(len(drawn), 0.5), drawn[:, 1]], axis=1))


def renormalised_head(codec: Threshold, logits: Array, drawn: Array) -> SparseTargets:
    """Sparse targets as truncation makes them: the head alone, scaled up to one."""
    p = softmax(logits)[0]
    ids = np.flatnonzero(p >= codec.threshold)
    count = len(drawn)
    weights = np.tile(p[ids] / p[ids].sum(), count).astype(np.float32)
    heads = np.full(count, len(ids))
    return SparseTargets(np.tile(ids, count), weights, offsets_of(heads), heads, len(p))


def slightly_skewed_points(codec: Threshold, logits: Array, drawn: Array) -> SparseTargets:
    """Draws u from a density that is a tenth too high at one end."""
    return trials("numpy", codec, logits, np.stack([drawn[:, 0] ** 1.1, drawn[:, 1]], axis=1))


@pytest.mark.parametrize(
    "biased", [nearest_grid_value, fixed_points, renormalised_head, slightly_skewed_points]
)
def test_a_biased_variant_would_be_found(biased: Callable[[Threshold, Array, Array], SparseTargets]) -> None:
    logits, codec = TEACHERS["zipf"], Threshold(0.02)
    drawn = uniforms(0, "logits", "zipf", 0, TRIALS, 2)
    assert biased_classes(softmax(logits)[0], codec.threshold, biased(codec, logits, drawn)) != []


@pytest.mark.parametrize("low", [0.8, 1.1, 1.5])
def test_no_more_squared_error_than_sampling_with_replacement_at_as_many_entries(low: float) -> None:
    """Against RS-KD (Sparse Logit Sampling, ACL 2025): counts of draws with replacement, as many as make its
    unique entries no fewer than ours, and its expected squared error, sum p (1 - p) / draws, in closed form.
    """
    size, count = 2000, 300
    logits = zipf_logits(np.random.default_rng(1).uniform(low, low + 1, count), size)
    p = softmax(logits)
    codec = Threshold()
    targets = codec.decode(codec.encode(logits, np.random.default_rng(2).random((count, 2))), size)
    entries = len(targets.ids) / count
    draws = next(n for n in range(1, 10_000) if (1 - (1 - p) ** n).sum() / count >= entries)
    ours = ((dense(targets) - p) ** 2).sum() / count
    theirs = (p * (1 - p)).sum() / draws / count
    assert ours < 0.5 * theirs


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_ids_beyond_17_bits_are_kept(implementation: str) -> None:
    size = 300_000
    logits = np.full((3, size), -np.inf, dtype=np.float32)
    logits[0, [5, 2**16 + 1, 2**17 + 3, size - 1]] = np.log([0.4, 0.3, 0.2, 0.1])
    logits[1, 2**17 :] = 0.0
    logits[2, size - 1] = 0.0
    codec = Threshold()
    encoded = encode(codec, implementation, logits, np.full((3, 2), 0.5))
    targets = codec.decode(encoded, size)
    ids, weights, heads = entries_of(targets, 0)
    assert ids == [5, 2**16 + 1, 2**17 + 3, size - 1]
    assert heads == 4
    assert weights == pytest.approx([0.4, 0.3, 0.2, 0.1], rel=0.06)
    ids, weights, heads = entries_of(targets, 1)
    assert (len(ids), heads) == (50, 0)
    step = (size - 2**17) / 50
    assert ids == pytest.approx([2**17 + (j + 0.5) * step for j in range(50)], abs=1.5)
    assert entries_of(targets, 2) == ([size - 1], [1.0], 1)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_target_that_is_as_good_as_certain_costs_one_entry(implementation: str) -> None:
    logits = np.where(np.arange(1000) == 40, 0, -40).astype(np.float32)[None]
    codec, drawn = Threshold(), np.random.default_rng(0).random((500, 2))
    targets = trials(implementation, codec, logits, drawn)
    assert targets.ids.tolist() == [40] * 500


def test_statistics_count_entries_head_mass_and_bytes() -> None:
    logits = zipf_logits(np.array([1.0, 1.3, 2.0]), 70_000)
    codec = Threshold()
    encoded = codec.encode(logits, np.full((3, 2), 0.25))
    statistics = codec.statistics(encoded, 70_000)
    p = softmax(logits)
    heads, draws = (p >= 0.02).sum(), np.ceil(np.where(p < 0.02, p, 0).sum(axis=1) / 0.02).sum()
    assert statistics["captured_mass"] == pytest.approx(np.where(p >= 0.02, p, 0).sum() / 3, abs=0.02 / PARTS)
    assert statistics["entries"] == pytest.approx((heads + draws) / 3)
    assert statistics["payload_bytes"] == pytest.approx((heads * 5 + draws * 4) / 3 + 2)


@pytest.mark.parametrize(("threshold", "dtype"), [(0.5, "|u1"), (1 / 254, "|u1"), (1 / 255, "<u2")])
def test_counts_are_as_narrow_as_the_threshold_allows(threshold: float, dtype: str) -> None:
    codec = Threshold(threshold)
    assert [field.dtype for field in codec.layout(100)[:2]] == [dtype, dtype]
    uniform = np.zeros((1, 5000), dtype=np.float32)
    most = codec.decode(codec.encode(uniform, np.zeros((1, 2))), 5000)
    assert len(most.ids) == np.ceil(1 / threshold)


def test_the_configuration_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Threshold().threshold = 0.1  # type: ignore[misc]
