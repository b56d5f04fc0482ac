"""What is rendered elsewhere is whole: no record lost, none twice, in whatever pieces, wherever it ends."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.batching import Item, Rendered
from pipeline.corpus.base import Filtered
from pipeline.profile import Profile
from pipeline.rendering import Chunk, FeedLost, fed, pieces
from pipeline.targets.unit import Quarantined
from pipeline.views.base import View


def record(row: int, size: int) -> Rendered:
    """One of the three forms, of so many bytes."""
    if row % 7 == 3:
        return Quarantined(str(row), row, None, "empty", "")
    if row % 7 == 5:
        return Filtered(str(row), row)
    return [Item(str(row), row, 0, 1, View({"x": np.zeros(size, dtype=np.uint8)}, 1))]


def grouped(records: list[Rendered], size: int) -> list[list[Rendered]]:
    return [records[i : i + size] for i in range(0, len(records), size)]


def bytes_of(group: list[Rendered]) -> int:
    return sum(found[0].content.inputs["x"].nbytes for found in group if isinstance(found, list))


@given(
    sizes=st.lists(st.integers(0, 50), max_size=60),
    group=st.integers(1, 20),
    limit=st.integers(1, 100),
)
def test_pieces_are_as_small_as_asked_and_hold_every_record_once(
    sizes: list[int], group: int, limit: int
) -> None:
    records = [record(i, size) for i, size in enumerate(sizes)]
    found = [list(piece) for piece in pieces(grouped(records, group), limit)]
    assert [item for piece in found for item in piece] == records
    for piece in found:
        assert bytes_of(piece) <= limit or sum(isinstance(one, list) for one in piece) == 1


@given(
    count=st.integers(0, 60),
    theirs=st.integers(1, 20),
    ours=st.integers(1, 20),
    lost=st.integers(0, 12),
)
def test_a_feed_that_is_lost_anywhere_is_gone_on_with_at_its_place(
    count: int, theirs: int, ours: int, lost: int
) -> None:
    records = [record(i, 1) for i in range(count)]
    asked = 0

    def feed() -> Generator[Chunk, None, None]:
        before = 0
        for number, group in enumerate(grouped(records, theirs)):
            if number == lost:
                raise FeedLost("gone")
            yield Chunk(group, before, Profile({"views": {0: 1.0}}))
            before += len(group)
        yield Chunk((), before, last=True)

    def rest() -> list[list[Rendered]]:
        nonlocal asked
        asked += 1
        return grouped(records, ours)

    total = Profile()
    found = [one for group in fed(feed(), rest, total.add) for one in group]
    assert found == records
    assert asked == (lost < -(-count // theirs))
    assert total.total("views") == min(lost, -(-count // theirs))


def test_a_chunk_out_of_its_place_is_not_taken() -> None:
    records = [record(i, 1) for i in range(4)]
    feed = (Chunk(records[2 * n : 2 * n + 2], 0) for n in range(2))
    assert [one for group in fed(feed, lambda: [records]) for one in group] == records


def test_a_consumer_that_stops_closes_the_feed() -> None:
    closed = []

    def feed() -> Generator[Chunk, None, None]:
        try:
            yield Chunk([record(0, 1)], 0)
            yield Chunk([record(1, 1)], 1)
        finally:
            closed.append(True)

    taken = fed(feed(), list)
    next(taken)
    taken.close()
    assert closed


def test_what_rendering_raises_is_raised() -> None:
    def feed() -> Generator[Chunk, None, None]:
        raise ValueError("here")
        yield

    with pytest.raises(ValueError, match="here"):
        list(fed(feed(), list))
