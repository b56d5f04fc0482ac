"""The plan grows and never changes, whoever plans; what is not committed is pending."""

from __future__ import annotations

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pipeline.targets import Store
from pipeline.targets.errors import PlannedMeanwhile
from tests.pipeline.targets.store.places import Place, again, names


@pytest.fixture
def container() -> str:
    """A plan is the same file whatever the shards are."""
    return "parquet"


def test_planning_again_adds_only_what_is_new(store: Store, place: Place, kit: Any) -> None:
    old, new = kit.make_units(5), kit.make_units(3, "grown")
    assert store.write_plan(old, {"kind": "text", "urls": ["a"]}, store.generation()) == 5
    assert store.write_plan(iter(old), {"kind": "text", "urls": ["a"]}, store.generation()) == 0
    assert store.write_plan([*new, *old, *new], {"kind": "text", "urls": ["a", "b"]}, store.generation()) == 3
    other = again(store, place)
    assert list(other.planned()) == [*old, *new]
    assert other.planned_count() == 8
    assert names(store, "plan/") == ["plan/000001.parquet", "plan/000002.parquet"]


def test_a_plan_cut_before_another_was_written_is_refused(store: Store, place: Place, kit: Any) -> None:
    ours, theirs = kit.make_units(1), kit.make_units(1, "grown")
    latest = store.generation()
    again(store, place).write_plan(theirs, {"kind": "text"}, latest)
    with pytest.raises(PlannedMeanwhile, match="plan again"):
        store.write_plan(ours, {"kind": "text"}, latest)
    assert list(store.planned()) == theirs


def test_of_two_that_plan_at_once_one_is_told_to_plan_anew(store: Store, place: Place, kit: Any) -> None:
    units = kit.make_units(40)
    barrier = threading.Barrier(4)

    def plan(part: int) -> int:
        mine = again(store, place)
        barrier.wait()
        while True:
            latest = mine.generation()
            with contextlib.suppress(PlannedMeanwhile):
                return mine.write_plan(units[part * 8 : part * 8 + 16], {"kind": "text"}, latest)

    with ThreadPoolExecutor(4) as pool:
        added = sum(pool.map(plan, range(4)))
    planned = [unit.id for unit in store.planned()]
    assert added == len(planned) == len(set(planned)) == 40


def test_a_resumed_job_gets_what_is_not_committed_in_plan_order(store: Store, place: Place, kit: Any) -> None:
    units = kit.make_units(9)
    assert store.write_plan(units, {"kind": "text"}, store.generation()) == 9
    for unit in units[::3]:
        kit.label(store, unit.id)
    store.compact()
    kit.label(store, units[1].id)
    other = again(store, place)
    assert [unit.id for unit in other.pending()] == [units[i].id for i in (2, 4, 5, 7, 8)]
    assert other.committed() == {units[i].id for i in (0, 1, 3, 6)}
    assert (other.verify().units, other.verify().missing_units) == (4, 5)


def plan_and_iterate(store: Store, kit: Any, count: int) -> None:
    def units() -> Any:
        for start in range(0, count, 1000):
            yield from kit.make_units(1000, f"corpus-{start}")

    assert store.write_plan(units(), {"kind": "text"}, store.generation()) == count
    assert store.planned_count() == count
    assert all(a == b for a, b in zip(store.planned(), units(), strict=True))
    assert sum(1 for _ in store.pending()) == count


def test_a_plan_of_thousands_of_units_streams(tmp_path: Any, kit: Any) -> None:
    plan_and_iterate(Store.create(str(tmp_path), kit.text_spec()), kit, 5000)


@pytest.mark.slow
def test_a_plan_of_a_hundred_thousand_units_streams(tmp_path: Any, kit: Any) -> None:
    store = Store.create(str(tmp_path), kit.text_spec())
    plan_and_iterate(store, kit, 100_000)
    assert os.path.getsize(tmp_path / "plan/000001.parquet") < 10 * 2**20
