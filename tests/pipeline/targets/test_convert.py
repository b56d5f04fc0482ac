"""Conversion: the same store in another container, whoever interrupts it, and the source untouched."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.targets import Commit, Head, Quarantined, Rows, Store
from pipeline.targets.codecs import Dense, TopK
from pipeline.targets.containers import CONTAINERS
from pipeline.targets.convert import convert, destination
from pipeline.targets.errors import ConfigError, CorruptShard, SpecMismatch

GOLDEN = Path(__file__).parents[2] / "golden"
CHANGED = {"attempt", "shard", "shard_bytes", "shard_sha256", "quarantine", "spec_fingerprint"}
"""Of a commit record; the others are the same in both stores."""


def files(store: Store) -> dict[str, str]:
    return {
        entry.name: hashlib.sha256(store.storage.read(entry.name)).hexdigest()
        for entry in store.storage.list("")
    }


def all_rows(store: Store, commit: Commit) -> Rows:
    """As if they were of a Parquet store, so that they can be compared."""
    spec = dataclasses.replace(store.spec, container="parquet")
    return Rows.concatenate([dataclasses.replace(rows, spec=spec) for rows in store.read(commit)])


@pytest.fixture
def source(tmp_path: Path, kit: Any) -> Store:
    """Four planned units, three labelled, one of them empty, two folded into a manifest."""
    return filled(Store.create(str(tmp_path / "source"), kit.text_spec()), kit)


def filled(store: Store, kit: Any) -> Store:
    units = kit.make_units(4)
    store.write_plan(units[:3], {"kind": "text"}, store.generation())
    store.write_plan(units, {"kind": "text", "urls": ["more"]}, store.generation())
    kit.label(store, units[0].id)
    kit.label(store, units[1].id, [], [Quarantined("a", 0, None, "empty", "nothing")])
    store.compact()
    kit.label(store, units[3].id, [kit.make_rows(store.spec, 30, views=2, seed=5)])
    return store


@pytest.mark.parametrize(("first", "second"), list(permutations(CONTAINERS, 2)))
def test_there_and_back_everything_is_as_it_was(tmp_path: Path, kit: Any, first: str, second: str) -> None:
    source = filled(Store.create(str(tmp_path / "source"), kit.text_spec(TopK(k=3), container=first)), kit)
    before = files(source)
    there = destination(source, str(tmp_path / "there"), second)
    assert convert(source, there) == 3
    back = destination(there, str(tmp_path / "back"), first)
    assert convert(there, back) == 3
    assert back.spec == source.spec
    for other in (there, back):
        assert list(other.planned()) == list(source.planned())
        assert [unit.id for unit in other.pending()] == [unit.id for unit in source.pending()]
        for commit in source.commits():
            copy = other.find(commit.unit)
            assert copy is not None
            for field in {field.name for field in dataclasses.fields(Commit)} - CHANGED:
                assert getattr(copy, field) == getattr(commit, field), field
            assert list(other.quarantined(copy)) == list(source.quarantined(commit))
            if commit.rows:
                assert kit.same(all_rows(other, copy), all_rows(source, commit))
                assert copy.shard.endswith(CONTAINERS[other.spec.container].extension)
        assert not other.verify().problems
    shards = {commit.unit: commit.shard_sha256 for commit in source.commits()}
    assert {commit.unit: commit.shard_sha256 for commit in back.commits()} == shards
    assert files(source) == before


def test_an_interrupted_conversion_goes_on_where_it_was(tmp_path: Path, source: Store) -> None:
    def interrupt(commit: Commit) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, destination(source, str(tmp_path / "to"), "zarr"), interrupt)
    begun = {commit.unit: commit for commit in Store.open(str(tmp_path / "to")).commits()}
    assert len(begun) == 1
    target = destination(source, str(tmp_path / "to"), "zarr")
    converted: list[Commit] = []
    assert convert(source, target, converted.append) == 2
    assert not {commit.unit for commit in converted} & set(begun)
    assert {commit.unit: commit for commit in target.commits()}.items() >= begun.items()
    assert convert(source, target) == 0
    assert not target.verify().problems


def test_a_source_that_has_grown_is_converted_further(tmp_path: Path, source: Store, kit: Any) -> None:
    target = destination(source, str(tmp_path / "to"), "webdataset")
    convert(source, target)
    (left,) = source.pending()
    source.write_plan(kit.make_units(1, "grown"), {"kind": "text"}, source.generation())
    kit.label(source, left.id)
    target = destination(source, str(tmp_path / "to"), "webdataset")
    assert convert(source, target) == 1
    assert list(target.planned()) == list(source.planned())
    assert not list(target.pending())[1:]


def test_what_cannot_be_converted_is_a_users_mistake_in_a_sentence(
    tmp_path: Path, source: Store, kit: Any
) -> None:
    with pytest.raises(ConfigError, match="is a parquet store already"):
        destination(source, str(tmp_path / "to"), "parquet")
    with pytest.raises(ConfigError, match=r'unknown container .*did you mean "zarr"'):
        destination(source, str(tmp_path / "to"), "zar")
    odd = Store.create(str(tmp_path / "odd"), kit.text_spec(heads=(Head("a/b", 4, "single", Dense()),)))
    with pytest.raises(ConfigError, match="'a/b' cannot stand in a zarr shard"):
        destination(odd, str(tmp_path / "to"), "zarr")
    assert not (tmp_path / "to").exists()
    with pytest.raises(SpecMismatch, match="another store url"):
        destination(source, str(tmp_path / "odd"), "zarr")
    with pytest.raises(SpecMismatch, match="another store url"):
        destination(source, source.url, "zarr")


def test_a_destination_with_another_plan_is_refused(tmp_path: Path, source: Store, kit: Any) -> None:
    other = Store.create(str(tmp_path / "to"), kit.text_spec(container="zarr"))
    other.write_plan(kit.make_units(1, "elsewhere"), {"kind": "text"}, other.generation())
    with pytest.raises(SpecMismatch, match=r"has another plan/000001\.parquet"):
        destination(source, str(tmp_path / "to"), "zarr")


def test_a_damaged_unit_of_the_source_is_named_and_not_converted(tmp_path: Path, source: Store) -> None:
    commit = next(commit for commit in source.commits() if commit.shard)
    path = Path(source.url) / str(commit.shard)
    path.write_bytes(path.read_bytes()[:-1])
    target = destination(source, str(tmp_path / "to"), "zarr")
    with pytest.raises(CorruptShard, match=f"{commit.shard} of {source.url}"):
        convert(source, target)
    assert commit.unit not in target.committed()


def test_a_unit_that_somebody_else_wrote_otherwise_is_found(
    tmp_path: Path, source: Store, kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = destination(source, str(tmp_path / "to"), "zarr")
    commit = next(commit for commit in source.commits() if commit.shard)
    kit.label(target, commit.unit, [kit.make_rows(target.spec, seed=99)])
    monkeypatch.setattr(target, "committed", set)  # as it was when the conversion began
    with pytest.raises(CorruptShard, match=f"unit {commit.unit} of {target.url} is not what it is"):
        convert(source, target)


@pytest.mark.parametrize("container", ["webdataset", "zarr"])
@pytest.mark.parametrize("codec", ["dense", "topk", "threshold"])
def test_a_store_of_version_1_keeps_its_version_and_decodes_to_the_same_bits(
    tmp_path: Path, container: str, codec: str
) -> None:
    spec = importlib.util.spec_from_file_location("golden_make", GOLDEN / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    source = Store.open(str(GOLDEN / "v1" / codec / "store"))
    target = destination(source, str(tmp_path / "to"), container)
    convert(source, target)
    assert target.spec.format_version == 1
    expected = json.loads((GOLDEN / "v1" / codec / "expected.json").read_text())
    found = module.contents(target)
    assert sorted(map(str, found["rows"])) == sorted(map(str, expected["rows"]))
    assert found["planned"] == expected["planned"]
    assert np.sum([commit["rows"] for commit in found["commits"]]) == 8
