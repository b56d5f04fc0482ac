"""Embedding: features come back as exactly as the dtype allows, and no row that is not finite goes in."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.targets.codecs import Embedding, NonFiniteLogits
from pipeline.targets.codecs.base import Array, Encoded

IMPLEMENTATIONS = ["numpy", "torch"]
DTYPES = ["float16", "bfloat16", "float32", "int8"]


def encode(codec: Embedding, implementation: str, vectors: Array) -> Encoded:
    none = np.zeros((len(vectors), 0))
    if implementation == "torch":
        return codec.encode_torch(torch.from_numpy(vectors.copy()), none)
    return codec.encode(vectors, none)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=60)
@given(
    vectors=hnp.arrays(
        np.float32,
        st.tuples(st.integers(0, 4), st.integers(1, 40)),
        elements=st.floats(-60000, 60000, width=32) | st.floats(-1, 1, width=32) | st.just(0.0),
    )
)
def test_a_feature_is_within_the_bound_of_its_dtype(dtype: Any, vectors: Array) -> None:
    codec = Embedding(dtype)
    reference, torched = encode(codec, "numpy", vectors), encode(codec, "torch", vectors)
    assert all(reference[name].tobytes() == torched[name].tobytes() for name in reference)
    found = codec.decode(reference, vectors.shape[1]).vectors
    assert found.dtype == np.float32
    error = np.abs(found.astype(np.float64) - vectors)
    relative = {"float16": 2**-11, "bfloat16": 2**-8, "float32": 0.0, "int8": 2**-22}[dtype]
    bound = relative * np.abs(vectors) + (2**-25 if dtype == "float16" else 1e-40)
    if dtype == "int8":
        bound = (
            bound + np.abs(vectors).max(axis=1, keepdims=True) / 254 + 2**-22 * np.abs(vectors).max(initial=0)
        )
    assert (error <= bound).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite_is_refused_and_named(
    implementation: str, dtype: Any, value: float
) -> None:
    vectors = np.ones((4, 3), dtype=np.float32)
    vectors[2, 1] = value
    with pytest.raises(NonFiniteLogits) as refused:
        encode(Embedding(dtype), implementation, vectors)
    assert refused.value.rows.tolist() == [False, False, True, False]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_feature_that_does_not_fit_is_refused_with_the_cure(implementation: str) -> None:
    with pytest.raises(ValueError, match=r'float16.*"bfloat16" or "float32"'):
        encode(Embedding(), implementation, np.array([[1.0, -70_000.0]], dtype=np.float32))
    with pytest.raises(ValueError, match="int8: scale"):
        encode(Embedding("int8"), implementation, np.array([[1.0, 1e300]]))


def test_int8_vectors_keep_their_direction() -> None:
    vectors = np.random.default_rng(0).normal(size=(200, 384)).astype(np.float32)
    codec = Embedding("int8")
    encoded = encode(codec, "torch", vectors)
    found = codec.decode(encoded, 384).vectors
    cosine = (found * vectors).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(vectors, axis=1)
    assert cosine.min() > 0.9999
    assert codec.statistics(encoded, 384) == {"entries": 384.0, "payload_bytes": 388.0}
