"""Whoever follows a store is told each committed unit once, whatever upkeep is done meanwhile."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.targets import Spec, Storage, Store
from pipeline.targets.follow import COLUMNS, Follower, UnitsTakenOut
from tests.pipeline.targets.store.places import Place, again


@pytest.fixture
def container() -> str:
    """Commit records are the same whatever the shards are."""
    return "parquet"


def told(follower: Follower, most: int | None = None) -> list[dict[str, Any]]:
    batches = list(follower.refresh(most))
    assert all(batch.schema.equals(COLUMNS) for batch in batches)
    return [row for batch in batches for row in batch.to_pylist()]


def test_each_unit_is_told_once_with_what_its_record_says(store: Store, place: Place, kit: Any) -> None:
    follower = Follower(again(store, place))
    assert told(follower) == []
    commits = [kit.label(store, unit.id) for unit in kit.make_units(4)]
    rows = told(follower)
    by_unit = {commit.unit: commit for commit in commits}
    assert sorted(row["unit"] for row in rows) == sorted(by_unit)
    for row in rows:
        assert row == {name: getattr(by_unit[row["unit"]], name) for name in COLUMNS.names}
    assert told(follower) == []
    store.compact()
    assert told(follower) == []
    late = kit.label(store, "ab" * 16)
    store.compact()
    assert [row["unit"] for row in told(follower)] == [late.unit]
    assert follower.committed == 5


@pytest.mark.slow
def test_a_look_is_bounded_and_the_next_ones_see_the_rest(
    store: Store, place: Place, kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    units = {kit.label(store, unit.id).unit for unit in kit.make_units(7)}
    other = again(store, place)
    read: list[str] = []
    many = Storage.read_many
    monkeypatch.setattr(Storage, "read_many", lambda self, names: read.extend(names) or many(self, names))
    follower, seen = Follower(other), set()
    for _ in range(3):
        rows = told(follower, most=3)
        assert len(rows) <= 3
        seen |= {row["unit"] for row in rows}
    assert seen == units
    for _ in range(6):
        assert told(follower, most=3) == []
    assert len(read) == len(set(read)) == 7


def test_a_look_costs_a_list_for_each_folder_and_a_read_for_each_new_record(
    kit: Any, s3_bucket_url: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    asyn = pytest.importorskip("fsspec.asyn")
    s3fs = pytest.importorskip("s3fs")
    asked: Counter[str] = Counter()
    call = s3fs.S3FileSystem._call_s3

    async def counted(self: Any, method: str, *arguments: Any, **options: Any) -> Any:
        asked[method] += 1
        return await call(self, method, *arguments, **options)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counted)
    monkeypatch.setattr(s3fs.S3FileSystem, "call_s3", asyn.sync_wrapper(counted))
    store = Store.create(s3_bucket_url[0], kit.text_spec(), s3_bucket_url[1])
    units = kit.make_units(3)
    store.write_plan(units, {"kind": "text"}, 0)
    follower = Follower(again(store, s3_bucket_url))
    for unit in units:
        kit.label(store, unit.id)
    asked.clear()
    assert len(told(follower)) == 3
    assert asked == {"list_objects_v2": 2, "get_object": 3}
    asked.clear()
    assert told(follower) == []
    assert asked == {"list_objects_v2": 2}


def test_units_taken_out_are_noticed(store: Store, place: Place, kit: Any) -> None:
    units = [kit.label(store, unit.id).unit for unit in kit.make_units(4)]
    follower = Follower(again(store, place))
    told(follower)
    store.discard(units[:1])  # from a record
    with pytest.raises(UnitsTakenOut):
        told(follower)
    follower = Follower(again(store, place))
    told(follower)
    store.discard(units[1:2])  # from the manifest
    with pytest.raises(UnitsTakenOut):
        told(follower)
    follower = Follower(again(store, place))
    assert {row["unit"] for row in told(follower)} == set(units[2:])


@pytest.fixture(scope="module")
def records() -> list[bytes]:
    """Commit records of six units."""
    import tempfile

    from tests.pipeline.targets.conftest import label, make_units, text_spec

    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(folder, text_spec())
        return [label(store, unit.id).to_json() for unit in make_units(6)]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["commit", "compact", "look", "look at two", "half compact"]), max_size=24))
def test_no_order_of_events_tells_a_unit_twice_or_never(
    tmp_path_factory: pytest.TempPathFactory, records: list[bytes], events: list[str]
) -> None:
    import json

    from tests.pipeline.targets.conftest import text_spec

    spec: Spec = text_spec()
    store = Store.create(str(tmp_path_factory.mktemp("store")), spec)
    follower, seen, waiting, committed = Follower(Store.open(store.url)), Counter[str](), list(records), set()
    for event in events:
        if event == "commit" and waiting:
            data = waiting.pop()
            unit = json.loads(data)["unit"]
            store.storage.put_if_absent(f"commits/{unit}.json", data)
            committed.add(unit)
        elif event == "compact":
            store.compact()
        elif event == "half compact":  # killed before it deleted
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(store.storage, "delete", lambda names: None)
                store.compact()
        elif event.startswith("look"):
            seen.update(row["unit"] for row in told(follower, 2 if event == "look at two" else None))
    while follower.committed < len(committed):
        seen.update(row["unit"] for row in told(follower))
    assert seen == Counter(committed)
