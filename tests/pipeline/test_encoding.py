"""Answers become rows, whatever is cut, missing or too large on the way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import encoding
from pipeline.batching import Item, collate
from pipeline.encoding import Labelled, encode
from pipeline.inference import Answer
from pipeline.targets.codecs import Dense, Threshold
from pipeline.targets.codecs.base import Array, Codec, Encoded, uniforms
from pipeline.targets.spec import Head, Input, Spec
from pipeline.targets.unit import Quarantined
from pipeline.teachers.logits import Given
from pipeline.views.base import View

SIZE = 7
INPUTS = (Input("tokens", "<u2", (None,)),)


def spec_of(codec: Codec) -> Spec:
    return Spec(INPUTS, (Head("logits", SIZE, "next_token", codec),), {"kind": "x"}, {"kind": "y"}, seed=3)


def answer_of(lengths: list[int], bad: set[int] = frozenset()) -> Answer:  # type: ignore[assignment]
    rng = np.random.default_rng(len(lengths))
    items = [
        Item(f"k{i}", i, 0, 1, View({"tokens": rng.integers(SIZE, size=n).astype("<u2")}, n))
        for i, n in enumerate(lengths)
    ]
    part = collate(items, np.arange(len(lengths)), INPUTS)
    logits = torch.from_numpy(rng.normal(0, 2, (len(lengths), max(lengths), SIZE)).astype(np.float32))
    for i, n in enumerate(lengths):
        logits[i, n - 1 :] = torch.nan  # behind the last target and in padding, anything may stand
        if i in bad:
            logits[i, rng.integers(n - 1), 2] = torch.nan
    return Answer(part, {"logits": Given(logits)}, 0.0, lambda: 0.5)


@pytest.mark.slow
@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(2, 9), min_size=1, max_size=12),
    bad=st.sets(st.integers(0, 11), max_size=4),
    limit=st.integers(1, 200),
)
def test_good_views_are_stored_whole_and_bad_ones_not_at_all(
    lengths: list[int], bad: set[int], limit: int
) -> None:
    answer, spec = answer_of(lengths, bad), spec_of(Threshold())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "CPU_ELEMENTS", limit)
        outcomes = list(encode(answer, spec))
    lost = [item for item in outcomes if isinstance(item, Quarantined)]
    assert {item.row for item in lost} == {i for i in bad if i < len(lengths)}
    assert all(item.code == "non_finite" for item in lost)
    good = [i for i in range(len(lengths)) if i not in bad]
    labelled = [item for item in outcomes if isinstance(item, Labelled)]
    if not good:
        assert labelled == []
        return
    (only,) = labelled
    assert only.positions.tolist() == good
    assert only.seconds == 0.5
    only.rows.to_arrow()  # what the rows' own rules refuse
    for place, i in enumerate(good):
        count = lengths[i] - 1
        alone = Threshold().encode_torch(
            answer.logits["logits"].whole()[i, :count], uniforms(3, "logits", f"k{i}", 0, count, 2)
        )
        row = only.rows.take(np.array([place]))
        for name, array in alone.items():
            np.testing.assert_array_equal(row.heads["logits"][name], array)


@pytest.mark.parametrize("bad", [set(), {3}])
def test_encoding_that_runs_out_of_memory_goes_on_in_halves(
    monkeypatch: pytest.MonkeyPatch, bad: set[int]
) -> None:
    answer, spec = answer_of([9] * 8, bad), spec_of(Dense(dtype="float32"))
    expected = [item for item in encode(answer, spec) if isinstance(item, Labelled)]
    sizes = []
    whole = Dense.encode_torch

    def tight(self: Dense, logits: torch.Tensor, randoms: Array) -> Encoded:
        sizes.append(len(logits))
        if len(logits) > 5:
            raise torch.OutOfMemoryError("out of memory")
        return whole(self, logits, randoms)

    monkeypatch.setattr(Dense, "encode_torch", tight)
    outcomes: list[Any] = list(encode(answer, spec))
    assert max(sizes) > 5
    (only,) = (item for item in outcomes if isinstance(item, Labelled))
    np.testing.assert_array_equal(
        only.rows.heads["logits"]["logits"], expected[0].rows.heads["logits"]["logits"]
    )
    assert {item.row for item in outcomes if isinstance(item, Quarantined)} == bad
