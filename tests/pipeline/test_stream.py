"""What a consumer may rely on when a stage runs ahead of it."""

import gc
import threading
import time
import traceback
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.stream import chunks, ordered, prefetch


class Broken(Exception):
    pass


def ours() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "decant-prefetch"]


def counting(made: list[int], stop: int, fail_at: int | None = None) -> Iterator[int]:
    """0, 1, 2 …; what was made is written down, and that it was closed as -1."""
    try:
        for i in range(stop):
            if i == fail_at:
                raise Broken(f"at {i}")
            made.append(i)
            yield i
    finally:
        made.append(-1)


@settings(max_examples=60)
@given(
    length=st.integers(0, 30),
    depth=st.integers(1, 5),
    stages=st.integers(1, 4),
    fail_at=st.none() | st.integers(0, 35),
    take=st.integers(0, 40),
)
def test_items_errors_and_early_ends_pass_through_any_chain(
    length: int, depth: int, stages: int, fail_at: int | None, take: int
) -> None:
    made: list[int] = []
    stream = counting(made, length, fail_at)
    for _ in range(stages):
        stream = prefetch(stream, depth)
    fails = fail_at is not None and fail_at < length
    good = list(range(fail_at if fails and fail_at is not None else length))
    got = []
    error: Exception | None = None
    try:
        for _, item in zip(range(take), stream, strict=False):
            got.append(item)
    except Broken as raised:
        error = raised
    assert got == good[:take]
    assert (error is not None) == (fails and take > len(good))
    stream.close()  # type: ignore[attr-defined]
    assert ours() == []
    assert not made or made[-1] == -1, "the source was not closed"


def test_an_error_keeps_the_traceback_of_where_it_happened() -> None:
    with pytest.raises(Broken) as caught:
        list(prefetch(counting([], 5, fail_at=3), 1))
    assert "counting" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]


@pytest.mark.parametrize("depth", [1, 3])
def test_the_thread_is_never_further_ahead_than_depth(depth: int) -> None:
    made: list[int] = []
    stream = prefetch(counting(made, 100), depth)
    next(stream)
    # The one that was taken, those that wait, and the one that waits to be put.
    while len(made) < 1 + depth + 1:
        time.sleep(0.001)
    time.sleep(0.05)  # for more, were there any
    assert len(made) == 1 + depth + 1
    stream.close()
    assert len(made) == 1 + depth + 1 + 1


def test_stages_overlap() -> None:
    """Three stages are at work at one moment, each on another item; one after the other they never meet."""
    meeting = threading.Barrier(3)

    def stage(items: Iterator[int], meets_at: int) -> Iterator[int]:
        for item in items:
            if item == meets_at:
                meeting.wait(timeout=60)
            yield item

    first = stage(iter(range(10)), 2)
    assert list(stage(prefetch(stage(prefetch(first, 1), 1), 1), 0)) == list(range(10))


def test_dropping_the_generator_ends_its_thread() -> None:
    stream = prefetch(counting([], 10**9), 2)
    assert next(stream) == 0
    assert len(ours()) == 1
    del stream
    gc.collect()
    assert ours() == []


def test_no_thread_before_the_first_item_is_wanted() -> None:
    stream = prefetch(counting([], 10), 2)
    assert ours() == []
    stream.close()
    assert ours() == []


def test_an_error_while_the_source_is_closed_is_not_lost() -> None:
    def stubborn() -> Iterator[int]:
        try:
            yield from range(100)
        finally:
            raise Broken("at close")

    stream = prefetch(stubborn(), 1)
    next(stream)
    with pytest.raises(Broken, match="at close"):
        stream.close()
    assert ours() == []


def test_a_depth_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="depth"):
        prefetch([1], 0)


@given(length=st.integers(0, 20), size=st.integers(1, 6), fail_at=st.none() | st.integers(0, 20))
def test_chunks_hold_all_items_in_order(length: int, size: int, fail_at: int | None) -> None:
    got: list[int] = []
    try:
        for chunk in chunks(counting([], length, fail_at), size):
            assert 1 <= len(chunk) <= size
            got += chunk
    except Broken:
        assert fail_at is not None
    assert got == list(range(min(length, length if fail_at is None else fail_at)))


@settings(max_examples=40)
@given(
    length=st.integers(0, 20),
    threads=st.integers(1, 4),
    fail_at=st.none() | st.integers(0, 22),
    work_fails_at=st.none() | st.integers(0, 22),
    take=st.integers(0, 25),
)
def test_work_by_several_threads_keeps_order_errors_and_early_ends(
    length: int, threads: int, fail_at: int | None, work_fails_at: int | None, take: int
) -> None:
    made: list[int] = []

    def work(item: int) -> int:
        if item == work_fails_at:
            raise Broken(f"work at {item}")
        return item * 10

    ends = [end for end in (fail_at, work_fails_at) if end is not None and end < length]
    good = [item * 10 for item in range(min([length, *ends]))]
    got, error = [], None
    stream = ordered(work, counting(made, length, fail_at), threads)
    try:
        for _, item in zip(range(take), stream, strict=False):
            got.append(item)
    except Broken as raised:
        error = raised
    stream.close()
    assert got == good[:take]
    assert (error is not None) == (bool(ends) and take > len(good))
    assert max(made, default=0) <= min(length, len(got) + threads + 1)
    assert not made or made[-1] == -1
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decant-ordered")]


def test_threads_work_side_by_side() -> None:
    meeting = threading.Barrier(3, timeout=30)
    assert list(ordered(lambda item: (meeting.wait(), item)[1], range(3), 3)) == [0, 1, 2]
