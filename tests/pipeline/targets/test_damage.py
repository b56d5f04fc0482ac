"""Damage: whatever happens to a store's files is found, named, and never read as targets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.targets import Commit, Quarantined, Rows, Store
from pipeline.targets.commit import commit_name
from pipeline.targets.containers import CONTAINERS
from pipeline.targets.errors import CorruptShard, DecantError, SpecMismatch, StorageError

UNIT = "ab" * 16


@pytest.fixture(params=CONTAINERS)
def container(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store(tmp_path: Path, kit: Any) -> Store:
    return Store.create(str(tmp_path / "store"), kit.text_spec())


def path_of(store: Store, name: str | None) -> Path:
    assert name is not None
    return Path(store.url) / name


def reasons(store: Store) -> list[str]:
    return [problem.reason for problem in store.verify().problems]


@pytest.mark.parametrize("keep", [0, 1, 100, -8, -1])
def test_a_truncated_shard_is_named(store: Store, kit: Any, keep: int) -> None:
    commit = kit.label(store, UNIT)
    path = path_of(store, commit.shard)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CorruptShard, match=commit.shard) as caught:
        list(store.read(commit))
    assert "label again" in str(caught.value)
    (problem,) = store.verify().problems
    assert (problem.unit, problem.shard) == (UNIT, commit.shard)


def test_a_flipped_bit_is_found_wherever_it_is(store: Store, kit: Any) -> None:
    commit = kit.label(store, UNIT)
    path = path_of(store, commit.shard)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for at in {0, len(whole) - 1, *rng.integers(0, len(whole), 100).tolist()}:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(CorruptShard, match="not the bytes that were committed"):
            list(store.read(commit))
    path.write_bytes(whole)
    assert not store.verify().problems


def forged(store: Store, commit: Commit, data: bytes, **changes: Any) -> Commit:
    """A shard of these bytes, with a commit record that vouches for them."""
    path_of(store, commit.shard).write_bytes(data)
    own = {"shard_sha256": hashlib.sha256(data).hexdigest(), "shard_bytes": len(data)}
    fields = {**vars(commit), **own, **changes}
    forgery = Commit(**fields)
    path_of(store, commit_name(commit.unit)).write_bytes(forgery.to_json())
    return forgery


def test_a_flipped_bit_that_the_checksum_vouches_for_never_crashes_a_reader(store: Store, kit: Any) -> None:
    commit = kit.label(store, UNIT)
    whole = path_of(store, commit.shard).read_bytes()
    rows = Rows.concatenate(list(store.read(commit)))
    rng = np.random.default_rng(1)
    found = []
    for at in rng.integers(0, len(whole), 120).tolist():
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(rng.integers(8))
        try:
            assert kit.same(Rows.concatenate(list(store.read(forged(store, commit, bytes(damaged))))), rows)
        except (CorruptShard, SpecMismatch) as error:
            found.append(str(error))
    assert all(str(commit.shard) in message for message in found)
    assert len(found) > 30  # page checksums cover the data; bits of padding and names may pass


def test_a_missing_shard_or_quarantine_file_is_named(store: Store, kit: Any) -> None:
    commit = kit.label(store, UNIT)
    path_of(store, commit.shard).unlink()
    path_of(store, commit.quarantine).unlink()
    with pytest.raises(CorruptShard, match=f"{commit.shard} .* is missing"):
        list(store.read(commit))
    with pytest.raises(CorruptShard, match=f"{commit.quarantine} .* is missing"):
        list(store.quarantined(commit))
    assert "missing" in reasons(store)[0]


def test_a_changed_quarantine_file_is_named(store: Store, kit: Any) -> None:
    commit = kit.label(store, UNIT)
    path = path_of(store, commit.quarantine)
    path.write_bytes(path.read_bytes().replace(b"empty", b"other"))
    with pytest.raises(CorruptShard, match=commit.quarantine):
        list(store.quarantined(commit))


def test_a_shard_of_another_spec_is_refused(store: Store, tmp_path: Path, kit: Any) -> None:
    commit = kit.label(store, UNIT)
    other = Store.create(str(tmp_path / "other"), kit.text_spec(seed=1))
    theirs = kit.label(other, UNIT)
    data = path_of(other, theirs.shard).read_bytes()
    with pytest.raises(SpecMismatch, match=str(commit.shard)):
        list(store.read(forged(store, commit, data)))
    path_of(store, commit_name(UNIT)).write_bytes(theirs.to_json())
    with pytest.raises(SpecMismatch, match="another spec"):
        list(store.commits())


@pytest.mark.parametrize("container", ["parquet"])
def test_a_parquet_file_that_is_no_shard_is_refused(store: Store, tmp_path: Path, kit: Any) -> None:
    commit = kit.label(store, UNIT)
    sink = tmp_path / "x.parquet"
    pq.write_table(pa.table({"a": [1]}), sink)
    foreign = sink.read_bytes()
    schema = pa.schema([("a", pa.int64())], metadata=store.spec.schema().metadata)
    pq.write_table(pa.table({"a": [1]}, schema=schema), sink)
    for data, error, why in (
        (b"hello", CorruptShard, "no readable Parquet"),
        (foreign, SpecMismatch, "of nobody"),
        (sink.read_bytes(), CorruptShard, "columns"),
    ):
        with pytest.raises(error, match=why):
            list(store.read(forged(store, commit, data)))


HOSTILE: dict[str, Callable[[dict[str, Any]], object]] = {
    "a shard outside": lambda r: r.update(shard="../../etc/passwd"),
    "an absolute shard": lambda r: r.update(shard="/etc/passwd"),
    "another unit's shard": lambda r: r.update(shard=r["shard"].replace("abab", "cdcd")),
    "a quarantine file outside": lambda r: r.update(quarantine="quarantine/../../x"),
    "an attempt that is a path": lambda r: r.update(attempt="../../../../x"),
    "a unit that is a path": lambda r: r.update(unit="../x"),
    "another unit": lambda r: r.update(unit="cd" * 16, shard=None, shard_sha256=None, rows=0),
    "a count that is text": lambda r: r.update(rows="12"),
    "a negative count": lambda r: r.update(records=-1),
    "a count beyond 64 bits": lambda r: r.update(targets=2**64),
    "a count that is true": lambda r: r.update(rows=True),
    "a checksum that is none": lambda r: r.update(shard_sha256="0"),
    "rows without a shard": lambda r: r.update(shard=None, shard_sha256=None),
    "quarantined without a file": lambda r: r.update(quarantine=None, quarantine_sha256=None),
    "seconds that are text": lambda r: r.update(started="now"),
    "seconds that are not finite": lambda r: r.update(finished=float("inf")),
    "statistics that are a list": lambda r: r.update(statistics=[1]),
    "statistics that are text": lambda r: r.update(statistics={"a": "b"}),
    "a histogram of fractions": lambda r: r.update(histograms={"a": [0.5]}),
    "a device that is none": lambda r: r.update(device=None),
    "an unknown key": lambda r: r.update(extra=1),
    "a missing key": lambda r: r.pop("rows"),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_commit_record_is_refused_by_name(
    store: Store, kit: Any, change: Callable[[dict[str, Any]], object]
) -> None:
    commit = kit.label(store, UNIT)
    record = json.loads(commit.to_json())
    change(record)
    path_of(store, commit_name(UNIT)).write_text(json.dumps(record))
    for action in (lambda: list(store.commits()), store.compact, lambda: store.find(UNIT), store.verify):
        with pytest.raises(CorruptShard, match=commit_name(UNIT)):
            action()


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"unit": NaN}'])
def test_a_commit_record_that_is_no_record_is_refused_by_name(store: Store, kit: Any, data: bytes) -> None:
    kit.label(store, UNIT)
    path_of(store, commit_name(UNIT)).write_bytes(data)
    with pytest.raises(CorruptShard, match=commit_name(UNIT)):
        list(store.commits())


def test_a_damaged_manifest_or_plan_is_a_sentence_and_not_a_smaller_store(store: Store, kit: Any) -> None:
    units = kit.make_units(50)
    store.write_plan(units, {"kind": "text"}, store.generation())
    for unit in units[:3]:
        kit.label(store, unit.id)
    store.compact()
    rng = np.random.default_rng(2)
    for name, look in (
        ("manifest/00000001.parquet", lambda s: sorted(c.unit for c in s.commits())),
        ("plan/000001.parquet", lambda s: [unit.id for unit in s.planned()]),
    ):
        path, expected = path_of(store, name), look(store)
        whole = path.read_bytes()
        messages = []
        for at in rng.integers(0, len(whole), 60).tolist():
            damaged = bytearray(whole)
            damaged[at] ^= 1 << int(rng.integers(8))
            path.write_bytes(damaged)
            try:
                assert look(Store.open(store.url)) == expected
            except (StorageError, SpecMismatch) as error:
                messages.append(str(error))
        assert messages
        assert all(name in message for message in messages)
        for data in (b"", whole[:-5], whole[: len(whole) // 2]):
            path.write_bytes(data)
            with pytest.raises(StorageError, match=name):
                look(Store.open(store.url))
        path.write_bytes(whole)


def test_a_broken_spec_is_a_sentence(store: Store) -> None:
    path = path_of(store, "spec.json")
    whole = json.loads(path.read_text())
    for broken in ({**whole, "format_version": 99}, {**whole, "surprise": 1}, {**whole, "heads": 3}, []):
        path.write_text(json.dumps(broken))
        with pytest.raises(SpecMismatch):
            Store.open(store.url)


def columns(rows: Rows, **changes: Any) -> Rows:
    return Rows(**{**vars(rows), **changes})


def test_verification_finds_what_no_checksum_can(store: Store, kit: Any) -> None:
    rows = kit.make_rows(store.spec, 4, views=2)
    whole, gone = Quarantined("file.txt#0", 0, None, "empty", ""), rows.take(np.arange(7))
    cases: dict[str, tuple[list[Rows], list[Quarantined], int]] = {
        "should have each of its views once, it has [0]": ([gone], [], 4),
        "is in quarantine as a whole": ([rows], [whole], 4),
        "holds 4 records": ([rows], [], 5),
        "two different numbers of views": ([columns(rows, views=rows.views + (rows.view == 0))], [], 4),
        "have the same key": ([columns(rows, keys=["same"] * 8)], [], 4),
        "is of two records": ([columns(rows, row=rows.row // 2)], [], 2),
        "should have each of its views once, it has [0, 0, 1, 1]": ([rows, rows], [], 4),
        "file.txt#3' should have each of its views once, it has [0, 0]": (
            [gone],
            [Quarantined("file.txt#3", 3, 0, "non_finite", "")],
            4,
        ),
    }
    for number, (parts, bad, records) in enumerate(cases.values()):
        kit.label(store, f"{number:032x}", parts, bad, records=records)
    found: dict[str, str] = {}
    for problem in store.verify().problems:
        found[problem.unit] = found.get(problem.unit, "") + problem.reason
    for number, reason in enumerate(cases):
        assert reason in found[f"{number:032x}"]


def test_a_view_in_quarantine_completes_its_record(store: Store, kit: Any) -> None:
    rows = kit.make_rows(store.spec, 3, views=2)
    bad = [Quarantined("file.txt#2", 2, 1, "non_finite", "NaN")]
    kit.label(store, UNIT, [rows.take(np.arange(5))], bad)
    assert not reasons(store)


def test_wrong_counts_in_a_commit_record_are_found(store: Store, kit: Any) -> None:
    commit = kit.label(store, UNIT)
    data = path_of(store, commit.shard).read_bytes()
    for name in ("records", "rows", "targets", "failures", "shard_bytes"):
        forged(store, commit, data, **{name: getattr(commit, name) + 1})
        assert str(getattr(commit, name) + 1) in reasons(store)[0]


def test_a_full_disk_damages_nothing_and_labelling_goes_on_afterwards(tiny_disk: Path, kit: Any) -> None:
    store = Store.create(str(tiny_disk / "store"), kit.text_spec())
    units = kit.make_units(200)
    store.write_plan(units, {"kind": "text"}, store.generation())
    committed = []
    many = 8 if kit.container == "webdataset" else 100  # a few units fill the disk

    parts = [kit.make_rows(store.spec, many, first=i * many) for i in range(8)]

    def fill() -> None:
        for unit in units:
            committed.append(kit.label(store, unit.id, parts))  # noqa: PERF401 - it stops half-way

    with pytest.raises(StorageError, match="full") as caught:
        fill()
    assert store.url in str(caught.value)
    assert committed
    assert sorted(c.unit for c in store.commits()) == sorted(c.unit for c in committed)
    assert not store.verify().problems
    store.gc(0)
    store.discard([committed[0].unit])
    store.gc(0)
    kit.label(store, committed[0].unit)
    assert not store.verify().problems


def test_an_unwritable_store_is_a_sentence(read_only: Path, kit: Any) -> None:
    with pytest.raises(StorageError, match="read-only") as caught:
        Store.create(str(read_only / "store"), kit.text_spec())
    assert isinstance(caught.value, DecantError)
    assert caught.value.exit_code == 1
