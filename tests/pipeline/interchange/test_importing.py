"""An import is resumed like labelling: what is committed stays, the rest is done, nothing twice."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.interchange import FORMATS, Source, importing
from pipeline.targets import Store
from pipeline.targets.errors import CorpusChanged, CorpusMissing, SpecMismatch, TooManyQuarantined

RNG = np.random.default_rng(0)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Five files of logits, a unit each."""
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    for i in range(5):
        np.save(folder / f"deep/{i}.npy", RNG.normal(size=(4, 6)).astype(np.float32))
    return folder


def begin(source: Path, store: Path) -> tuple[Any, Source, Store]:
    importer = FORMATS["arrays"].model_validate({})
    files = Source(str(source), importer.patterns)
    return importer, files, importing.prepare(importer, files, str(store))


def test_what_was_committed_is_skipped_and_the_rest_is_imported(source: Path, tmp_path: Path) -> None:
    importer, files, store = begin(source, tmp_path / "store")
    run = importing.run(importer, files, store)
    first = [next(run), next(run)]
    run.close()
    importer, files, store = begin(source, tmp_path / "store")
    rest = list(importing.run(importer, files, store))
    assert len(rest) == 3
    assert {commit.unit for commit in first} | {commit.unit for commit in rest} == store.committed()
    assert list(importing.run(importer, files, store)) == []
    verified = store.verify()
    assert (verified.problems, verified.rows, verified.missing_units) == ((), 20, 0)
    assert {commit.attempt for commit in first} <= {commit.attempt for commit in store.commits()}


def test_a_copied_source_is_the_same_source(source: Path, tmp_path: Path) -> None:
    importer, files, store = begin(source, tmp_path / "store")
    list(importing.run(importer, files, store))
    shutil.copytree(source, tmp_path / "copy")
    importer, files, store = begin(tmp_path / "copy", tmp_path / "store")
    assert list(importing.run(importer, files, store)) == []
    assert store.planned_count() == 5


def test_a_source_with_other_contents_is_another_import(source: Path, tmp_path: Path) -> None:
    begin(source, tmp_path / "store")
    path = source / "deep/3.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(SpecMismatch, match="give another store url"):
        begin(source, tmp_path / "store")


def test_a_file_that_changes_meanwhile_stops_the_import_and_is_not_committed(
    source: Path, tmp_path: Path
) -> None:
    importer, files, store = begin(source, tmp_path / "store")
    for path in source.glob("deep/*.npy"):
        path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(CorpusChanged, match=r"0\.npy changed while it was imported"):
        list(importing.run(importer, files, store))
    assert store.committed() == set()


def test_a_unit_of_nothing_but_failures_is_not_committed(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full((150, 3), np.nan, np.float32))
    importer, files, store = begin(tmp_path / "a.npy", tmp_path / "store")
    with pytest.raises(
        TooManyQuarantined, match=r"none of 100 records .* a\.npy#99: the logits are not finite"
    ):
        list(importing.run(importer, files, store))
    assert store.committed() == set()


def test_the_commit_records_tell_the_truth(source: Path, tmp_path: Path) -> None:
    logits = np.load(source / "deep/0.npy")
    logits[1] = np.nan
    np.save(source / "deep/0.npy", logits)
    importer, files, store = begin(source, tmp_path / "store")
    commits = list(importing.run(importer, files, store))
    assert sorted((c.records, c.rows, c.targets, c.failures) for c in commits) == [
        (4, 3, 3, 1),
        *[(4, 4, 4, 0)] * 4,
    ]
    assert all(commit.statistics["logits.entries"] == 6 for commit in commits)


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir])
def test_a_source_without_a_file_of_the_format_is_refused(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "nothing")
    with pytest.raises(CorpusMissing, match="check the path"):
        Source(str(tmp_path / "nothing"), ("*.npy",))


def test_a_source_on_an_object_store_is_imported_too(
    source: Path, tmp_path: Path, s3_bucket_url: tuple[str, dict[str, Any]]
) -> None:
    import fsspec

    url, options = s3_bucket_url
    fs = fsspec.filesystem("s3", **options)
    for path in source.glob("deep/*.npy"):
        fs.pipe_file(f"{url}/in/deep/{path.name}", path.read_bytes())
    importer = FORMATS["arrays"].model_validate({})
    files = Source(f"{url}/in", importer.patterns, options)
    assert files.fingerprint() == Source(str(source), importer.patterns).fingerprint()
    store = importing.prepare(importer, files, f"{url}/store", options)
    assert len(list(importing.run(importer, files, store))) == 5
    assert store.verify().problems == ()
    assert "test-secret" not in store.spec.to_json()
