"""Damaged, exchanged and shifted shards are found, in every container."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.audit import audit
from tests.pipeline.audit.stores import checks, copy_of, first, flip, label, said, shifted

CONTAINERS = ["parquet", "webdataset", "zarr"]


@pytest.mark.parametrize("container", CONTAINERS)
def test_an_honest_store_of_any_container_passes(make: Any, container: str) -> None:
    job = make(container=container)
    assert label(job).spec.container == container
    result = audit(job, rows=40)
    assert result.findings == (), said(result)
    assert result.relabelled == 40
    assert result.heads[0].equal > 0.95 * result.heads[0].targets


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_flipped_bit_is_found(make: Any, container: str) -> None:
    job = make(container=container)
    store = label(job)
    commit = next(iter(store.commits()))
    path = Path(job.store.url) / str(commit.shard)
    path.write_bytes(flip(path.read_bytes()))
    result = audit(job)
    assert checks(result) == {"shard"}
    assert first(result, "shard").unit == commit.unit
    assert "not the bytes that were committed" in said(result)


@pytest.mark.parametrize("container", CONTAINERS)
def test_targets_shifted_by_one_token_are_found(make: Any, tmp_path: Path, container: str) -> None:
    honest = label(make(container=container))
    copy_of(honest, str(tmp_path / "lie"), honest.spec, lambda rows: shifted(rows, 1))
    result = audit(make(store="lie", container=container))
    assert {"values", "place"} <= checks(result)
    assert "targets fit the previous token better than their own: shifted by one" in said(result)


def test_two_shards_whose_files_were_exchanged_are_found(make: Any, tmp_path: Path) -> None:
    job = make()
    a, b, *_ = label(job).commits()
    paths = [Path(job.store.url) / str(commit.shard) for commit in (a, b)]
    shutil.move(paths[0], tmp_path / "aside")
    shutil.move(paths[1], paths[0])
    shutil.move(tmp_path / "aside", paths[1])
    result = audit(job)
    assert {finding.unit for finding in result.findings} == {a.unit, b.unit}
    assert checks(result) == {"shard"}


def test_two_units_exchanged_with_all_their_checksums_are_found(make: Any) -> None:
    job = make()
    a, b, *_ = sorted(label(job).commits(), key=lambda commit: commit.unit)
    root = Path(job.store.url)
    for mine, other in ((a, b), (b, a)):
        data = (root / str(other.shard)).read_bytes()
        (root / f"new-{mine.unit}").write_bytes(data)
        record = json.loads(mine.to_json())
        record |= {
            name: getattr(other, name)
            for name in ("rows", "targets", "records", "shard_bytes", "quarantined")
        }
        record["shard_sha256"] = hashlib.sha256(data).hexdigest()
        (root / "commits" / f"{mine.unit}.json").write_text(json.dumps(record))
    for commit in (a, b):
        (root / f"new-{commit.unit}").replace(root / str(commit.shard))
    result = audit(job, rows=200)
    assert checks(result) == {"inputs"}
    assert {finding.unit for finding in result.findings} == {a.unit, b.unit}
    for finding, other in zip(sorted(result.findings, key=lambda f: str(f.unit)), (b, a), strict=True):
        assert f"unit {other.unit[:12]}: the shards of the two are exchanged" in finding.reason


def test_a_record_that_changed_in_the_corpus_is_found(make: Any, tmp_path: Path) -> None:
    job = make()
    label(job)
    path = tmp_path / "corpus" / "05.txt"
    path.write_text(path.read_text()[:-3] + "xyz")
    result = audit(job, rows=200)
    assert checks(result) == {"inputs"}
    assert "05.txt" in said(result)
