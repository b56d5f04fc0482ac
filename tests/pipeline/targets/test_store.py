"""The store: what was committed is there once, whole and readable; what was not does not exist."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from pipeline.targets import Commit, Quarantined, Rows, Spec, Storage, Store
from pipeline.targets.codecs import Dense, Threshold, TopK
from pipeline.targets.containers import CONTAINERS
from pipeline.targets.errors import PlannedMeanwhile, SpecMismatch, UserError
from pipeline.targets.manifest import manifest_name

Place = tuple[str, dict[str, Any]]


@pytest.fixture(params=CONTAINERS)
def container(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store(place: Place, kit: Any) -> Store:
    return Store.create(place[0], kit.text_spec(), place[1])


def again(store: Store, place: Place) -> Store:
    """The same store, as another process would see it."""
    return Store.open(place[0], place[1])


def names(store: Store, prefix: str) -> list[str]:
    return sorted(entry.name for entry in store.storage.list(prefix))


def test_a_store_says_all_about_itself(store: Store, place: Place) -> None:
    assert again(store, place).spec == store.spec
    assert Store.create(place[0], store.spec, place[1]).spec == store.spec


def test_a_store_of_another_codec_or_teacher_is_refused_by_name(store: Store, place: Place, kit: Any) -> None:
    for other, culprit in (
        (kit.text_spec(TopK(k=4)), "heads"),
        (kit.text_spec(Threshold(0.3)), "0.3"),
        (kit.text_spec(teacher={"kind": "fake", "fingerprint": "another"}), "teacher"),
    ):
        with pytest.raises(SpecMismatch, match=culprit) as caught:
            Store.create(place[0], other, place[1])
        assert "another store url" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert again(store, place).spec == store.spec


def test_of_two_creators_with_different_specs_one_wins(place: Place, kit: Any) -> None:
    specs = [kit.text_spec(seed=seed) for seed in range(6)]
    barrier = threading.Barrier(6)

    def create(spec: Spec) -> Spec | None:
        barrier.wait()
        try:
            return Store.create(place[0], spec, place[1]).spec
        except SpecMismatch:
            return None

    with ThreadPoolExecutor(6) as pool:
        created = [spec for spec in pool.map(create, specs) if spec is not None]
    assert created == [Store.open(place[0], place[1]).spec]


def test_opening_where_there_is_no_store_is_a_users_mistake(place: Place) -> None:
    with pytest.raises(UserError, match="there is no store at") as caught:
        Store.open(place[0] + "-elsewhere", place[1])
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("codec", [Dense(), TopK(k=5), Threshold(0.1)])
def test_what_is_written_is_read(place: Place, kit: Any, codec: Any) -> None:
    spec = kit.text_spec(codec)
    store = Store.create(place[0], spec, place[1])
    parts = [kit.make_rows(spec, 5, first=start, views=2) for start in range(0, 15, 5)]
    bad = [
        Quarantined("file.txt#15", 15, None, "empty", "nothing"),
        Quarantined("ü", 16, 0, "non_finite", "NaN"),
    ]
    (unit,) = kit.make_units(1)
    commit = kit.label(store, unit.id, parts, bad)
    other = again(store, place)
    assert kit.same(Rows.concatenate(list(other.read(commit))), Rows.concatenate(parts))
    assert list(other.quarantined(commit)) == bad
    assert (commit.records, commit.rows, commit.quarantined, commit.failures) == (17, 30, 2, 1)
    assert commit.targets == sum(int(part.targets.sum()) for part in parts)
    assert commit.shard is not None
    assert commit.shard_bytes == len(store.storage.read(commit.shard))
    assert other.find(unit.id) == commit
    assert list(other.commits()) == [commit]
    assert not other.verify().problems


def test_a_store_of_fixed_inputs_and_single_heads_counts_a_target_a_row(place: Place, kit: Any) -> None:
    spec = kit.image_spec()
    store = Store.create(place[0], spec, place[1])
    rows = kit.make_rows(spec, 7)
    commit = kit.label(store, "ab" * 16, [rows])
    assert commit.targets == commit.rows == 7
    assert kit.same(next(store.read(commit)), rows)
    assert not store.verify().problems


def test_a_unit_without_rows_has_no_shard_and_is_done(store: Store, kit: Any) -> None:
    bad = [Quarantined("a", 0, None, "empty", "nothing")]
    commit = kit.label(store, "ab" * 16, [], bad)
    assert commit.shard is None
    assert list(store.read(commit)) == []
    nothing = kit.label(store, "cd" * 16, [], [], records=0)
    store.compact()
    assert {c.unit: c for c in store.commits()} == {commit.unit: commit, nothing.unit: nothing}
    assert not store.verify().problems


def test_an_attempt_without_a_commit_leaves_nothing(store: Store, kit: Any) -> None:
    def attempt() -> None:
        with store.writer("ab" * 16) as writer:
            writer.write(kit.make_rows(store.spec))
            writer.quarantine(Quarantined("a", 99, None, "empty", "nothing"))
            raise FileNotFoundError("a corpus file vanished")

    with pytest.raises(FileNotFoundError, match="corpus file"):
        attempt()
    with store.writer("ab" * 16) as writer:
        writer.write(kit.make_rows(store.spec))
    assert names(store, "") == ["spec.json"]


def test_rows_of_another_spec_are_not_written(store: Store, kit: Any) -> None:
    rows = kit.make_rows(kit.text_spec(seed=9))
    with store.writer("ab" * 16) as writer, pytest.raises(SpecMismatch, match="do not belong"):
        writer.write(rows)


def test_equal_rows_give_equal_bytes_however_they_are_cut(store: Store, kit: Any) -> None:
    rows = kit.make_rows(store.spec, 400)
    cuts = [[400], [1] * 400, [150, 250], [399, 1]]
    digests = set()
    for number, sizes in enumerate(cuts):
        starts = np.cumsum([0, *sizes[:-1]])
        parts = [rows.take(np.arange(a, a + n)) for a, n in zip(starts, sizes, strict=True)]
        digests.add(kit.label(store, f"{number:032x}", parts).shard_sha256)
    assert len(digests) == 1


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


def test_planning_again_adds_only_what_is_new(store: Store, place: Place, kit: Any) -> None:
    old, new = kit.make_units(5), kit.make_units(3, "grown")
    assert store.write_plan(old, {"kind": "text", "urls": ["a"]}, store.generation()) == 5
    assert store.write_plan(iter(old), {"kind": "text", "urls": ["a"]}, store.generation()) == 0
    assert store.write_plan([*new, *old, *new], {"kind": "text", "urls": ["a", "b"]}, store.generation()) == 3
    other = again(store, place)
    assert list(other.planned()) == [*old, *new]
    assert other.planned_count() == 8
    assert names(store, "plan/") == ["plan/000001.parquet", "plan/000002.parquet"]


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


def test_a_plan_cut_before_another_was_written_is_refused(store: Store, place: Place, kit: Any) -> None:
    ours, theirs = kit.make_units(1), kit.make_units(1, "grown")
    latest = store.generation()
    again(store, place).write_plan(theirs, {"kind": "text"}, latest)
    with pytest.raises(PlannedMeanwhile, match="plan again"):
        store.write_plan(ours, {"kind": "text"}, latest)
    assert list(store.planned()) == theirs


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


def test_compaction_changes_nothing_but_the_number_of_files(store: Store, place: Place, kit: Any) -> None:
    units = kit.make_units(6)
    commits = {}
    for done, unit in enumerate(units, start=1):
        commits[unit.id] = kit.label(store, unit.id)
        if done % 2 == 0:
            assert store.compact() == done
            assert names(store, "commits/") == []
        other = again(store, place)
        assert {commit.unit: commit for commit in other.commits()} == commits
        assert len(list(other.commits())) == done
        assert other.find(unit.id) == commits[unit.id]
        assert other.find(units[0].id) == commits[units[0].id]
    assert store.find("ff" * 16) is None
    assert store.compact() == 6
    assert names(store, "manifest/") == [manifest_name(n) for n in (1, 2, 3)]


def test_a_compaction_killed_before_it_deleted_counts_no_unit_twice(
    store: Store, place: Place, kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = [kit.label(store, unit.id) for unit in kit.make_units(3)]
    with monkeypatch.context() as patch:
        patch.setattr(store.storage, "delete", lambda names: None)
        store.compact()
    assert len(names(store, "commits/")) == 3
    other = again(store, place)
    assert sorted(c.unit for c in other.commits()) == sorted(c.unit for c in commits)
    assert len(other.committed()) == 3
    assert len(other.gc(0, delete=False)) == 3
    assert other.compact() == 3
    assert names(store, "commits/") == []
    assert names(store, "manifest/") == [manifest_name(1)]


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


def test_gc_removes_what_nothing_refers_to_and_only_after_the_grace(
    store: Store, place: Place, kit: Any
) -> None:
    units = kit.make_units(3)
    kit.label(store, units[0].id)
    store.compact()
    kit.label(store, units[1].id)
    store.compact()
    kept = {name for name in names(store, "") if name != manifest_name(1)}
    loser = kit.label(store, units[0].id, [kit.make_rows(store.spec, seed=4)])
    assert loser.attempt in store.find(units[0].id).attempt
    store.storage.put_if_absent("tmp/half-written", b"half")
    store.storage.put_if_absent("shards/notes.txt", b"not ours")
    garbage = sorted(set(names(store, "")) - kept - {"shards/notes.txt"})
    assert len(garbage) == 3
    assert store.gc() == []
    assert store.gc(0, delete=False) == garbage
    assert set(names(store, "")) == kept | set(garbage) | {"shards/notes.txt"}
    assert store.gc(0) == garbage
    assert set(names(store, "")) == kept | {"shards/notes.txt"}
    assert not again(store, place).verify().problems
    assert store.gc(0) == []


def test_gc_spares_what_is_committed_while_it_lists(
    store: Store, place: Place, kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = Storage.list

    def commit_meanwhile(self: Storage, prefix: str) -> Any:
        entries = list(listing(self, prefix))
        if prefix == "shards/" and not entries:
            kit.label(again(store, place), "ab" * 16)
            entries = list(listing(self, prefix))
        yield from entries

    monkeypatch.setattr(Storage, "list", commit_meanwhile)
    assert store.gc(-60) == []  # no grace at all: younger than a minute from now
    assert not store.verify().problems


def test_a_discarded_unit_is_labelled_again(store: Store, place: Place, kit: Any) -> None:
    units = kit.make_units(4)
    store.write_plan(units, {"kind": "text"}, store.generation())
    for unit in units:
        kit.label(store, unit.id)
        if unit == units[1]:
            store.compact()
    store.discard([units[0].id, units[3].id])
    other = again(store, place)
    assert [unit.id for unit in other.pending()] == [units[0].id, units[3].id]
    fresh = kit.label(other, units[0].id)
    assert other.find(units[0].id) == fresh
    assert not other.verify().problems


def test_credentials_are_nowhere_in_a_store(s3_bucket_url: Place, kit: Any) -> None:
    store = Store.create(s3_bucket_url[0], kit.text_spec(), s3_bucket_url[1])
    store.write_plan(kit.make_units(2), {"kind": "text"}, store.generation())
    kit.label(store, kit.make_units(1)[0].id)
    kit.label(store, kit.make_units(2)[1].id)
    store.compact()
    for name in names(store, ""):
        data = store.storage.read(name)
        assert s3_bucket_url[1]["secret"].encode() not in data
        assert s3_bucket_url[1]["key"].encode() not in data
    assert s3_bucket_url[1]["secret"] not in store.url


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
    started = time.time()
    plan_and_iterate(store, kit, 100_000)
    assert time.time() - started < 120
    assert os.path.getsize(tmp_path / "plan/000001.parquet") < 10 * 2**20
