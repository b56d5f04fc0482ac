"""What a profile of labelling may be relied on for: where time went, and that no second is counted twice."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.profile import Profile, Recorder
from pipeline.stream import prefetch

ITEMS = 5
PAUSE = 0.05
"""Of a slow stage, seconds an item: what others do here takes a hundredth of it."""


def slowly(items: Any, seconds: float) -> Iterator[int]:
    for item in items:
        time.sleep(seconds)
        yield item


@pytest.mark.parametrize("slow", ["first", "second"])
def test_a_slow_stage_works_and_its_neighbours_wait(slow: str) -> None:
    recorder = Recorder()
    first = prefetch(slowly(range(ITEMS), PAUSE * (slow == "first")), 1, "first", recorder)
    second = prefetch(slowly(first, PAUSE * (slow == "second")), 1, "second", recorder)
    assert list(second) == list(range(ITEMS))
    profile = recorder.take()
    other = {"first": "second", "second": "first"}[slow]
    assert profile.total(slow) >= ITEMS * PAUSE
    assert profile.total(other) < profile.total(slow) / 2
    if slow == "first":
        assert profile.starved["second"] > ITEMS * PAUSE / 2
    else:
        assert profile.blocked["first"] > (ITEMS - 3) * PAUSE


def test_an_error_passes_a_watched_stage_as_any_other() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("here")

    recorder = Recorder()
    with pytest.raises(ValueError, match="here"):
        list(prefetch(broken(), 1, "broken", recorder))
    assert recorder.take().working["broken"]


@given(
    begin=st.floats(1e9, 2e9),
    seconds=st.floats(0, 10),
    starved=st.floats(0, 20),
)
def test_work_is_laid_on_the_seconds_in_which_it_was_done(
    begin: float, seconds: float, starved: float
) -> None:
    recorder = Recorder()
    recorder.worked("a", begin, begin + seconds, starved)
    profile = recorder.take()
    assert profile.total("a") == pytest.approx(max(0.0, seconds - starved), abs=1e-5)
    assert profile.starved == {"a": starved}
    for second, worked in profile.working["a"].items():
        assert 0 <= worked <= 1 + 1e-9
        assert int(begin) <= second <= begin + seconds
    assert recorder.take() == Profile()


def test_profiles_add_up() -> None:
    total = Profile()
    total.add(Profile({"a": {1: 0.5}}, {"a": 1.0}))
    total.add(Profile({"a": {1: 0.25, 2: 1.0}, "b": {2: 0.5}}, {"a": 0.5}, {"b": 2.0}))
    assert total == Profile({"a": {1: 0.75, 2: 1.0}, "b": {2: 0.5}}, {"a": 1.5}, {"b": 2.0})
