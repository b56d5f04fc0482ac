"""The ledger: what is written is read again, and the digest tells one rendering from another."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.targets.errors import CorruptShard
from pipeline.targets.replay import ledger

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_an_entry_is_read_as_it_was_written(entry: dict[str, object]) -> None:
    assert ledger.read(ledger.write(entry)) == entry


def test_an_entry_is_compact_and_sorted() -> None:
    stored = ledger.write({"flip": True, "crop": [1, 2, 3, 4]})
    assert stored.tobytes() == b'{"crop":[1,2,3,4],"flip":true}'


@pytest.mark.parametrize("stored", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000])
def test_what_is_no_entry_is_refused(stored: bytes) -> None:
    with pytest.raises(CorruptShard, match="ledger entry"):
        ledger.read(np.frombuffer(stored, dtype=np.uint8))


def test_the_digest_is_what_the_format_says() -> None:
    values = np.arange(6, dtype="<f4").reshape(2, 3)
    text = b'["image", "<f4", [2, 3]]\n' + values.tobytes()
    expected = hashlib.blake2b(text, digest_size=8).digest()
    assert ledger.digest({"image": values}).tobytes() == expected
    assert ledger.digest({"image": np.asfortranarray(values)}).tobytes() == expected


def test_the_digest_tells_values_shapes_types_and_names_apart() -> None:
    values = np.zeros((2, 3), dtype="<f4")
    other = values.copy()
    other[1, 2] = np.nextafter(np.float32(0), np.float32(1))
    renderings = [
        {"image": values},
        {"image": other},
        {"image": values.T},
        {"image": values.view("<i4")},
        {"picture": values},
        {"image": values, "more": values},
    ]
    assert len({ledger.digest(rendered).tobytes() for rendered in renderings}) == len(renderings)
