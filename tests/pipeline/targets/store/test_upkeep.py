"""Compaction, collecting garbage and discarding change nothing that is committed."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.targets import Storage, Store
from pipeline.targets.manifest import manifest_name
from tests.pipeline.targets.store.places import Place, again, names

GOLDEN = Path(__file__).parents[3] / "golden"


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


def test_a_manifest_from_before_there_were_filters_is_read_and_compacted_on(tmp_path: Path, kit: Any) -> None:
    golden = next(path.parents[1] for path in sorted(GOLDEN.rglob("manifest/00000001.parquet")))
    shutil.copytree(golden, tmp_path / "store")
    store = Store.open(str(tmp_path / "store"))
    before = list(store.commits())
    assert before
    assert {commit.filtered for commit in before} == {0}
    unit = before[0].unit
    store.discard({unit})
    assert list(Store.open(store.url).commits()) == before[1:]


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


def test_records_can_be_had_without_their_statistics(store: Store, place: Place, kit: Any) -> None:
    for number, unit in enumerate(kit.make_units(4)):
        kit.label(store, unit.id)
        if number == 1:
            store.compact()
    bare = {commit.unit: commit for commit in again(store, place).commits(statistics=False)}
    for commit in store.commits():
        assert bare[commit.unit] == dataclasses.replace(commit, statistics={}, histograms={})
        assert commit.statistics
