"""Dense: raw logits come back as they were given, as exactly as the dtype allows."""

import numpy as np
import pytest
import torch

from pipeline.targets.codecs import Dense

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


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("given", [np.float16, np.float32, np.float64])
def test_torch_stores_the_bytes_of_the_reference(dtype: str, given: type) -> None:
    codec, logits = Dense(dtype=dtype), LOGITS.astype(given)  # type: ignore[arg-type]
    assert (
        codec.encode_torch(torch.from_numpy(logits), NONE)["logits"].tobytes()
        == codec.encode(logits, NONE)["logits"].tobytes()
    )


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
