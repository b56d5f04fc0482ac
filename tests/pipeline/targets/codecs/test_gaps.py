"""Gaps come back whatever their size, and what is no such coding is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.targets.codecs import gaps
from pipeline.targets.ragged import Ragged, offsets_of

rows = st.lists(st.lists(st.integers(0, 20) | st.integers(0, gaps.LARGEST), max_size=20), max_size=8)


def flat(found: list[list[int]]) -> tuple[gaps.Ints, gaps.Ints]:
    return (
        np.array([gap for row in found for gap in row], dtype=np.int64),
        offsets_of(np.array([len(row) for row in found], dtype=np.int64)),
    )


@settings(max_examples=200)
@given(found=rows)
def test_gaps_come_back(found: list[list[int]]) -> None:
    values, bounds = flat(found)
    codes, bits = gaps.encode(values, bounds)
    assert gaps.decode(codes, bits, bounds).tolist() == values.tolist()


@settings(max_examples=50)
@given(found=rows, at=st.integers(0, 7))
def test_a_row_is_coded_alike_in_any_company(found: list[list[int]], at: int) -> None:
    found.append([1, 2**31, 7])
    row = found[at % len(found)]
    codes, bits = gaps.encode(*flat(found))
    alone, its_bits = gaps.encode(*flat([row]))
    _, bounds = flat(found)
    assert codes[bounds[at % len(found)] : bounds[at % len(found) + 1]].tolist() == alone.tolist()
    assert bits[at % len(found)].tolist() == its_bits.values.tolist()


def test_every_code_of_a_32_bit_gap_is_a_byte_of_its_own() -> None:
    sizes = np.unique(np.concatenate([np.arange(64), 2 ** np.arange(32), 2 ** np.arange(1, 33) - 1]))
    codes, bits = gaps.encode(sizes, np.array([0, len(sizes)]))
    assert (np.diff(codes.astype(int)) >= 0).all()
    assert len(bits.values) == -(-sum(max(0, int(size).bit_length() - 4) for size in sizes) // 8)


@settings(max_examples=200)
@given(
    codes=st.binary(max_size=30),
    bits=st.binary(max_size=60),
    cut=st.integers(0, 30),
    bits_cut=st.integers(0, 60),
)
def test_what_was_not_encoded_is_refused_or_gives_gaps_in_range(
    codes: bytes, bits: bytes, cut: int, bits_cut: int
) -> None:
    bounds = np.array([0, min(cut, len(codes)), len(codes)])
    given_bits = Ragged(np.frombuffer(bits, np.uint8), np.array([0, min(bits_cut, len(bits)), len(bits)]))
    try:
        decoded = gaps.decode(np.frombuffer(codes, np.uint8), given_bits, bounds)
    except ValueError:
        return
    assert len(decoded) == len(codes)
    assert ((decoded >= 0) & (decoded <= gaps.LARGEST)).all()


def test_codes_beyond_the_last_are_refused() -> None:
    nothing = Ragged(np.zeros(0, np.uint8), np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="code"):
        gaps.decode(np.array([240], np.uint8), nothing, np.array([0, 1]))
