"""The codec of an embedding head that a budget, an error, or both ask for."""

from __future__ import annotations

import pytest

from jobs.vector_sizing import choose
from pipeline.targets.codecs import Embedding
from pipeline.targets.errors import UserError
from pipeline.vectors import VectorPoint

POINTS = [
    VectorPoint(Embedding(), stored, stored + 9, cosine, cosine)
    for stored, cosine in ((128.0, 1.0), (68.0, 0.9999), (64.0, 0.9999), (32.0, 0.998), (8.0, 0.97))
]


@pytest.mark.parametrize(
    ("budget", "error", "stored"),
    [
        (1000.0, None, 128),  # the nearest to the teacher
        (70.0, None, 64),  # of two as near, the smaller
        (63.0, None, 32),
        (None, 0.5, 8),  # the smallest
        (None, 0.01, 32),
        (70.0, 0.01, 32),
        (None, 0.00005, 128),
    ],
)
def test_the_codec_is_the_nearest_of_a_budget_and_the_smallest_of_an_error(
    budget: float | None, error: float | None, stored: int
) -> None:
    assert choose(POINTS, budget, error).bytes == stored


@pytest.mark.parametrize(("budget", "error"), [(7.0, None), (10.0, 0.001)])
def test_what_cannot_be_had_is_said_with_what_there_is(budget: float, error: float | None) -> None:
    with pytest.raises(UserError, match=r"128 bytes at 0, .*, 8 bytes at 0\.03: allow more"):
        choose(POINTS, budget, error)
