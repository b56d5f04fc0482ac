"""The plan grows and never changes, whoever plans; what is not committed is pending."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.targets import Store, generations, plan
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


def test_any_planned_unit_is_found_by_its_id_whatever_generation_it_is_of(
    store: Store, kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "GROUP_SLICES", 10)
    monkeypatch.setattr(generations, "HELD", 2)
    assert store.lookup().find("0" * 32) is None
    first, second = kit.make_units(50), kit.make_units(30, "grown")
    for units in (first, second):
        store.write_plan(units, {"kind": "text"}, store.generation())
    lookup = store.lookup()
    units = [*first, *second]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lookup.find, [unit.id for unit in reversed(units)])) == units[::-1]
    for unknown in ("", "x", "f" * 32, units[0].id[:16] + "0" * 16):
        assert lookup.find(unknown) is None


def test_ids_that_begin_alike_are_told_apart(store: Store, kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    units = kit.make_units(6)
    store.write_plan(units, {"kind": "text"}, store.generation())
    monkeypatch.setattr(generations, "_short", lambda unit_id: len(unit_id) % 2)
    lookup = store.lookup()
    assert [lookup.find(unit.id) for unit in units] == units
    assert lookup.find("f" * 32) is None


def test_finding_units_holds_no_units(tmp_path: Path, kit: Any) -> None:
    store = Store.create(str(tmp_path / "store"), kit.text_spec())
    units = kit.make_units(6_000)
    store.write_plan(units, {"kind": "text"}, 0)
    wanted = [unit.id for unit in units[::600]]
    del units
    gc.collect()
    tracemalloc.start()
    try:
        lookup = store.lookup()
        assert all(lookup.find(unit_id) for unit_id in wanted)
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 6_000 * 12 + 60_000
