"""The numbers of a commit record are those of the targets."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.statistics import Means, distribution, fidelity


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**16),
    targets=st.integers(1, 40),
    size=st.integers(2, 200),
    scale=st.floats(0.0, 30.0),
    shift=st.floats(-100, 100),
    excluded=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_entropy_and_nll_are_those_of_the_distribution(
    seed: int, targets: int, size: int, scale: float, shift: float, excluded: bool, dtype: torch.dtype
) -> None:
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(0, 1, (targets, size)) * scale + shift).to(dtype)
    if excluded:
        logits[:, rng.integers(size)] = -torch.inf
    labels = rng.integers(size, size=targets).astype(np.uint16)
    log_p = torch.log_softmax(logits.double(), dim=1)
    expected = torch.special.entr(log_p.exp()).sum(dim=1).numpy()
    single, none = distribution(logits, None)
    assert none is None
    np.testing.assert_allclose(single, expected, atol=2e-3)
    entropy, nll = distribution(logits, labels)
    assert nll is not None
    np.testing.assert_allclose(entropy, expected, atol=2e-3)
    wanted = -log_p[torch.arange(targets), torch.from_numpy(labels.astype(np.int64))].numpy()
    np.testing.assert_allclose(nll, wanted, atol=2e-3)


def test_means_are_weighted_and_what_is_excluded_is_left_out() -> None:
    first, second = Means(), Means()
    first.add("h", {"entries": 2.0}, 1)
    second.add("h", {"entries": 5.0}, 3)
    second.add_distribution("h", np.array([0.1, 0.3, 99.0]), np.array([1.0, np.inf, 3.0]))
    first.merge(second)
    assert first.values() == pytest.approx({"h.entries": 4.25, "h.entropy": 99.4 / 3, "h.label_nll": 2.0})
    (bins,) = first.histograms().values()
    assert (len(bins), bins[0], bins[1], bins[39]) == (40, 1, 1, 1)


def test_fidelity_is_the_teachers_norm_and_its_cosine_to_what_is_stored() -> None:
    teacher = torch.tensor([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0], [1.0, 0.0]], dtype=torch.bfloat16)
    stored = np.array([[6.0, 8.0], [2.0, 0.0], [0.0, 0.0], [0.0, 0.0]], dtype=np.float32)
    assert fidelity(teacher, stored) == pytest.approx({"norm": 8 / 4, "cosine": (1 + 0 + 1 + 0) / 4})
