"""Of all attempts at a unit exactly one counts, whoever reads and compacts meanwhile."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipeline.targets import Commit, Store
from tests.pipeline.targets.store.places import Place, again, names


def test_an_attempt_that_lost_returns_the_winners_record(store: Store, place: Place, kit: Any) -> None:
    unit = "ab" * 16
    first, second = kit.label(store, unit), kit.label(again(store, place), unit)
    assert second == first
    assert len(names(store, "shards/")) == 2
    assert list(store.commits()) == [first]
    assert not store.verify().problems


def test_of_many_attempts_at_a_unit_exactly_one_counts(store: Store, place: Place, kit: Any) -> None:
    barrier = threading.Barrier(5)

    def attempt(seed: int) -> Commit:
        mine = again(store, place)
        with mine.writer("ab" * 16) as writer:
            writer.write(kit.make_rows(store.spec, seed=seed))
            barrier.wait()
            facts = {"statistics": {}, "histograms": {}, "started": 0.0, "forward_seconds": 0.0}
            return writer.commit(records=12, device=str(seed), **facts)

    with ThreadPoolExecutor(5) as pool:
        commits = list(pool.map(attempt, range(5)))
    assert commits == [store.find("ab" * 16)] * 5
    assert kit.same(next(store.read(commits[0])), kit.make_rows(store.spec, seed=int(commits[0].device)))
    assert len(store.gc(0)) == 4
    assert not store.verify().problems


def test_a_late_attempt_loses_to_the_manifest_too(store: Store, place: Place, kit: Any) -> None:
    unit = "ab" * 16
    with again(store, place).writer(unit) as late:
        late.write(kit.make_rows(store.spec, seed=5))
        first = kit.label(store, unit)
        assert store.compact() == 1
        facts = {"statistics": {}, "histograms": {}, "started": 0.0, "forward_seconds": 0.0}
        assert late.commit(records=12, device="cpu", **facts) == first
    assert names(store, "commits/") == []
    assert list(again(store, place).commits()) == [first]


def test_reading_and_compacting_and_committing_at_once_keeps_one_of_each(
    store: Store, place: Place, kit: Any
) -> None:
    units = kit.make_units(10)
    store.write_plan(units, {"kind": "text"}, store.generation())
    done = threading.Event()
    acknowledged: list[str] = []

    def compact() -> None:
        while not done.is_set():
            again(store, place).compact()

    def watch() -> int:
        looks = 0
        while not done.is_set():
            before = set(acknowledged)
            seen = [commit.unit for commit in again(store, place).commits()]
            assert len(seen) == len(set(seen))
            assert before <= set(seen)
            assert before <= again(store, place).committed()
            looks += 1
        return looks

    def work(part: int) -> None:
        mine = again(store, place)
        for unit in units[part::2]:
            commit = kit.label(mine, unit.id)
            acknowledged.append(commit.unit)

    with ThreadPoolExecutor(6) as pool:
        others = [pool.submit(compact), pool.submit(compact), pool.submit(watch)]
        for worker in [pool.submit(work, part) for part in (0, 1)]:
            worker.result()
        done.set()
        assert others[2].result() > 0
        for other in others[:2]:
            other.result()
    assert store.compact() == 10
    assert not list(store.pending())
    assert not store.verify().problems


def changed(store: Store, kit: Any, unit: str, seed: int) -> Commit:
    """Another attempt at a unit, which is durable and not published."""
    facts = {"statistics": {}, "histograms": {}, "started": 0.0, "forward_seconds": 0.0}
    with store.writer(unit) as writer:
        writer.write(kit.make_rows(store.spec, seed=seed))
        return writer.commit(records=12, device=str(seed), publish=False, **facts)


def test_records_are_replaced_at_one_instant_and_only_those_that_still_stand(
    store: Store, place: Place, kit: Any
) -> None:
    units = [f"{i}{i}" * 16 for i in range(4)]
    present = [kit.label(store, unit) for unit in units]
    store.compact()
    mine, theirs = again(store, place), again(store, place)
    new = [changed(mine, kit, unit, 1) for unit in units[:3]]
    other = changed(theirs, kit, units[0], 2)
    assert list(again(store, place).commits()) == present
    assert theirs.replace([(present[0], other)]) == 1
    assert mine.replace(list(zip(present[:3], new, strict=True))) == 2
    assert {commit.unit: commit for commit in again(store, place).commits()} == {
        units[0]: other,
        units[1]: new[1],
        units[2]: new[2],
        units[3]: present[3],
    }
    late = kit.label(again(store, place), units[1])
    assert late == new[1], "a late attempt finds the new record"
    store.gc(0)
    assert not store.verify().problems
