"""The records that kill are found, and no other is blamed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.engine.isolation import BEGIN, KILLERS, Search


def searched(
    records: int, killers: set[int], by_chance: frozenset[int] = frozenset()
) -> tuple[Search | None, int]:
    """Where a search ends, and how many replicas it costs. by_chance: trials that die of no record."""
    search: Search | None = BEGIN
    deaths = trials = 0
    while search is not None:
        trial = range(records) if search.trial is None else search.trial
        trials += 1
        dies = any(row in killers and row not in search.skip for row in trial) or trials in by_chance
        if search.trial is None and not dies:
            break
        deaths += dies
        search = search.died("signal 9") if dies else search.survived(records)
        assert trials < 1000
    return search, deaths


@given(st.data(), st.integers(1, 200))
def test_all_records_that_kill_are_found_and_no_others(data: st.DataObject, records: int) -> None:
    killers = data.draw(st.sets(st.integers(0, records - 1), min_size=1, max_size=KILLERS))
    search, deaths = searched(records, killers)
    assert search is not None
    assert set(search.skip) == killers
    assert set(search.skip.values()) == {"killed the replica: signal 9"}
    assert deaths <= len(killers) * (records.bit_length() + 2)


@given(st.integers(1, 200))
def test_a_unit_that_kills_whatever_is_in_it_is_given_up(records: int) -> None:
    assert searched(records, set(range(records)))[0] is None or records <= KILLERS


@given(st.integers(2, 200), st.sets(st.integers(1, 12)))
def test_a_record_that_does_not_kill_by_itself_is_blamed_only_if_a_replica_dies_of_it(
    records: int, by_chance: set[int]
) -> None:
    search, deaths = searched(records, set(), frozenset(by_chance))
    assert search is None or len(search.skip) <= deaths


def test_a_unit_whose_reading_kills_is_given_up_at_once() -> None:
    assert BEGIN.died("signal 11") is None
