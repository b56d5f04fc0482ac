"""Dense: raw logits come back as they were given, as exactly as the dtype allows."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.targets.codecs import Dense
from pipeline.targets.codecs.base import Array

LOGITS = (np.random.default_rng(0).normal(size=(50, 10)) * 20 + 7).astype(np.float32)
NONE = np.zeros((50, 0))


def test_float32_logits_come_back_to_the_bit_with_shift_and_masks() -> None:
    logits = LOGITS.copy()
    logits[:, 3] = -np.inf
    codec = Dense(dtype="float32")
    decoded = codec.decode(codec.encode(logits, NONE), 10)
    assert decoded.logits.dtype == np.float32
    np.testing.assert_array_equal(decoded.logits, logits)


def test_float16_rounds_to_the_nearest() -> None:
    codec = Dense()
    decoded = codec.decode(codec.encode(LOGITS, NONE), 10)
    assert np.abs(decoded.logits - LOGITS).max() <= np.abs(LOGITS).max() * 2**-11


def test_bfloat16_is_what_torch_calls_bfloat16() -> None:
    logits = np.concatenate([LOGITS, LOGITS * 1e30, LOGITS * 1e-40, -0.0 * LOGITS]).astype(np.float32)
    logits[:, 3] = -np.inf
    codec = Dense(dtype="bfloat16")
    decoded = codec.decode(codec.encode(logits, np.zeros((200, 0))), 10)
    np.testing.assert_array_equal(decoded.logits, torch.from_numpy(logits).bfloat16().float().numpy())


@settings(max_examples=200)
@given(
    logits=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 30)),
        elements=st.floats(-float(np.float32(2.9e38)), float(np.float32(2.9e38)), width=32)
        | st.floats(-20, 20, width=32)
        | st.just(-np.inf),
    )
)
def test_int8_is_within_its_bound_and_keeps_what_is_excluded(logits: Array) -> None:
    logits = logits[np.isfinite(logits.max(axis=1))]
    codec = Dense(dtype="int8")
    encoded = codec.encode(logits, np.zeros((len(logits), 0)))
    decoded = codec.decode(encoded, logits.shape[1]).logits.astype(np.float64)
    finite = np.isfinite(logits)
    np.testing.assert_array_equal(np.isneginf(decoded), ~finite)
    for row, found, kept in zip(logits.astype(np.float64), decoded, finite, strict=True):
        bound = (row[kept].max() - row[kept].min()) / 508
        rounding = 2.0**-22 * np.abs(row[kept]).max() + 1e-43
        assert np.abs(found[kept] - row[kept]).max() <= bound + rounding
    torched = codec.encode_torch(torch.from_numpy(logits), np.zeros((len(logits), 0)))
    assert all(encoded[name].tobytes() == torched[name].tobytes() for name in encoded)


def test_int8_of_equal_logits_is_exact() -> None:
    logits = np.full((2, 5), 7.25, dtype=np.float32)
    logits[1, 1:] = -np.inf  # one-hot
    codec = Dense(dtype="int8")
    decoded = codec.decode(codec.encode(logits, np.zeros((2, 0))), 5)
    np.testing.assert_array_equal(decoded.logits, logits)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int8"])
@pytest.mark.parametrize("given", [np.float16, np.float32, np.float64])
def test_torch_stores_the_bytes_of_the_reference(dtype: Any, given: type) -> None:
    codec, logits = Dense(dtype=dtype), LOGITS.astype(given)
    reference, torched = codec.encode(logits, NONE), codec.encode_torch(torch.from_numpy(logits), NONE)
    assert list(reference) == list(torched)
    assert all(reference[name].tobytes() == torched[name].tobytes() for name in reference)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "int8"])
def test_a_logit_that_does_not_fit_is_refused_in_any_dtype(dtype: Any) -> None:
    codec = Dense(dtype=dtype)
    for large in (3e300, -3e300) if dtype != "int8" else (3e300, -3e300, 3.1e38, -3.1e38):
        logits = np.array([[1.0, large]])
        for encode in (codec.encode, lambda z, u: codec.encode_torch(torch.from_numpy(z), u)):
            with pytest.raises(ValueError, match=f"too large for the head's dtype {dtype}"):
                encode(logits, np.zeros((1, 0)))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("implementation", ["numpy", "torch"])
def test_a_logit_that_does_not_fit_float16_is_refused_with_the_cure(sign: int, implementation: str) -> None:
    logits = LOGITS.copy()
    logits[2, 4] = sign * 70_000.0
    encode = {
        "numpy": lambda: Dense().encode(logits, NONE),
        "torch": lambda: Dense().encode_torch(torch.from_numpy(logits), NONE),
    }[implementation]
    with pytest.raises(ValueError, match=r'float16.*"float32"'):
        encode()


def test_statistics_count_every_class() -> None:
    codec = Dense()
    statistics = codec.statistics(codec.encode(LOGITS, NONE), 10)
    assert statistics == {"entries": 10.0, "captured_mass": 1.0, "payload_bytes": 20.0}
