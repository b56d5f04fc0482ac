"""What was committed is there whole and readable; what was not does not exist."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from pipeline.targets import Quarantined, Rows, Spec, Store
from pipeline.targets.codecs import Dense, Threshold, TopK
from pipeline.targets.errors import SpecMismatch, UserError
from tests.pipeline.targets.store.places import Place, again, names


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
    rows = kit.make_rows(store.spec, 150)
    cuts = [[150], [1] * 150, [60, 90], [149, 1]]
    digests = set()
    for number, sizes in enumerate(cuts):
        starts = np.cumsum([0, *sizes[:-1]])
        parts = [rows.take(np.arange(a, a + n)) for a, n in zip(starts, sizes, strict=True)]
        digests.add(kit.label(store, f"{number:032x}", parts).shard_sha256)
    assert len(digests) == 1


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
