"""Codebooks: self-describing, the nearest word always, and near to the vectors that they were trained for."""

import base64
import itertools
import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.targets.codecs import Codebooks, NonFiniteLogits, codec_from_json
from pipeline.targets.codecs.base import Array, Encoded, concatenate
from pipeline.targets.codecs.codebooks import train

D, C = 24, 6


def clustered(count: int, seed: int, size: int = D) -> Array:
    """Vectors near one of 40 directions, as a network's embeddings of alike inputs are."""
    centres = np.random.default_rng(0).normal(size=(40, size))
    rng = np.random.default_rng(seed)
    near = centres[rng.integers(0, 40, count)]
    return (near + 0.2 * rng.normal(size=(count, size))).astype(np.float32)


CODEC = train(clustered(2000, 1), C, seed=3, iterations=8)


def encode(codec: Codebooks, implementation: str, vectors: Array) -> Encoded:
    none = np.zeros((len(vectors), 0))
    if implementation == "torch":
        return codec.encode_torch(torch.from_numpy(vectors.copy()), none)
    return codec.encode(vectors, none)


def cosine(a: Array, b: Array) -> Any:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_json_rebuilds_the_codec_words_and_all() -> None:
    again = codec_from_json(json.loads(json.dumps(CODEC.to_json())))
    assert again == CODEC
    vectors = clustered(50, 2)
    assert (
        encode(again, "numpy", vectors)["codes"].tobytes()
        == encode(CODEC, "numpy", vectors)["codes"].tobytes()
    )
    assert len(json.dumps(CODEC.to_json())) < 700 * D
    assert len(repr(CODEC)) < 100


@pytest.mark.parametrize("implementation", ["numpy", "torch"])
@settings(max_examples=40)
@given(
    vectors=hnp.arrays(
        np.float32, st.tuples(st.integers(0, 5), st.just(D)), elements=st.floats(-50, 50, width=32)
    )
)
def test_each_part_becomes_its_nearest_word(implementation: str, vectors: Array) -> None:
    encoded = encode(CODEC, implementation, vectors)
    assert encoded["codes"].dtype == np.uint8
    assert encoded["codes"].shape == (len(vectors), C)
    found = CODEC.decode(encoded, D).vectors.reshape(-1, C, D // C)
    parts = vectors.reshape(-1, C, 1, D // C).astype(np.float64)
    least = np.square(parts - CODEC.books).sum(-1).min(-1)
    chosen = np.square(parts[:, :, 0] - found).sum(-1)
    np.testing.assert_allclose(chosen, least, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("implementation", ["numpy", "torch"])
def test_both_implementations_choose_alike_in_any_company(implementation: str) -> None:
    vectors = clustered(3000, 4)
    whole = encode(CODEC, "numpy", vectors)
    cuts = [0, 1, 700, 701, 3000]
    parts = [encode(CODEC, implementation, vectors[a:b]) for a, b in itertools.pairwise(cuts)]
    joined = concatenate(parts, CODEC.layout(D))
    np.testing.assert_array_equal(joined["codes"], whole["codes"])


def test_training_is_a_function_of_pilot_and_seed() -> None:
    pilot = clustered(600, 5)
    first, again, other = (train(pilot, 3, seed=seed, iterations=3) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_vectors_that_the_books_never_saw_keep_their_direction_and_more_books_keep_it_better() -> None:
    pilot, unseen = clustered(2000, 6), clustered(500, 7)
    mean = {}
    for count in (2, 6, 12):
        codec = train(pilot, count, iterations=8)
        mean[count] = float(cosine(codec.decode(encode(codec, "torch", unseen), D).vectors, unseen).mean())
    assert mean[2] < mean[6] < mean[12]
    assert mean[12] > 0.99


def test_a_pilot_with_fewer_kinds_of_vectors_than_words_is_kept_exactly() -> None:
    kinds = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float16).astype(np.float32)
    pilot = np.tile(kinds, (20, 1))
    codec = train(pilot, 2)
    np.testing.assert_array_equal(codec.decode(encode(codec, "numpy", kinds), 4).vectors, kinds)


@pytest.mark.parametrize(
    ("pilot", "count", "named"),
    [
        (np.zeros((255, 4)), 2, "at least 256"),
        (np.zeros(300), 2, "at least 256"),
        (np.zeros((300, 5)), 2, "multiple of 2"),
        (np.full((300, 4), np.nan), 2, "not finite"),
        (np.full((300, 4), 1e5), 2, "65504"),
    ],
)
def test_a_pilot_that_cannot_be_learned_from_is_refused(pilot: Array, count: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        train(pilot, count)


WORDS = base64.b64encode(np.zeros((2, 256, 2), "<f2").tobytes()).decode()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"size": 0}, "size: "),
        ({"size": "4"}, "size: "),
        ({"count": 3}, "count: "),
        ({"words": "?"}, "words: not base64"),
        ({"words": 5}, "words: not base64"),
        ({"words": WORDS[:-4]}, "words: .* bytes"),
        ({"words": base64.b64encode(np.full(1024, np.inf, "<f2").tobytes()).decode()}, "words: .* finite"),
    ],
)
def test_a_wrong_configuration_is_refused_by_the_name_of_the_key(changed: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        codec_from_json({"kind": "codebooks", "size": 4, "count": 2, "words": WORDS, **changed})


def test_a_head_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="for 24 features, the head has 25"):
        CODEC.layout(25)


@pytest.mark.parametrize("implementation", ["numpy", "torch"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite_is_refused_and_named(implementation: str, value: float) -> None:
    vectors = clustered(3, 0)
    vectors[1, 5] = value
    with pytest.raises(NonFiniteLogits) as refused:
        encode(CODEC, implementation, vectors)
    assert refused.value.rows.tolist() == [False, True, False]


def test_statistics_are_bytes() -> None:
    assert CODEC.statistics(encode(CODEC, "numpy", clustered(3, 0)), D) == {
        "entries": 6.0,
        "payload_bytes": 6.0,
    }
