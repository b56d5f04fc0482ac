"""Which files a corpus has, what tells them apart, and what planning promises."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from pipeline.corpus import AnySource, Record, TextFiles
from pipeline.targets.errors import ConfigError, CorpusChanged, CorpusMissing, CorpusUnreadable
from pipeline.targets.unit import Unit


def keys(source: TextFiles) -> list[str]:
    return [item.key for unit in source.units() for item in source.read(unit)]


def planned(units: list[Unit]) -> dict[str, str]:
    return {part.url: part.fingerprint for unit in units for part in unit.slices}


def test_a_folder_is_taken_sorted_without_hidden_files_and_caches(tmp_path: Path) -> None:
    for name in ("b.py", "a/z.py", "a/.hidden.py", ".git/x.py", "a/__pycache__/z.py", "c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert keys(TextFiles(urls=[str(tmp_path)], pattern="*.py")) == ["a/z.py", "b.py"]
    assert keys(TextFiles(urls=[str(tmp_path)], exclude=["a/**"])) == ["b.py", "c.txt"]
    assert keys(TextFiles(urls=[str(tmp_path)], pattern="a/*.py")) == ["a/z.py"]
    assert keys(TextFiles(urls=[str(tmp_path)], pattern="**/*.py")) == ["a/z.py", "b.py"]


def test_globs_files_and_folders_that_overlap_give_each_file_once(tmp_path: Path) -> None:
    for name in ("a1.txt", "a2.txt", "deep/a3.txt", "odd[1].txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    one = TextFiles(urls=[f"{tmp_path}/a?.txt", str(tmp_path / "a1.txt"), str(tmp_path / "odd[1].txt")])
    assert keys(one) == ["a1.txt", "a2.txt", "odd[1].txt"]
    assert keys(TextFiles(urls=[f"{tmp_path}/**/a*.txt"])) == ["a1.txt", "a2.txt", "deep/a3.txt"]
    assert keys(TextFiles(urls=[str(tmp_path / "a1.txt")])) == ["a1.txt"]


def test_the_home_directory_and_relative_paths_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("x")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    wanted = str(tmp_path / "corpus" / "a.txt")
    for url in ("~/corpus", "corpus", "./corpus/../corpus", f"file://{tmp_path}/corpus"):
        (unit,) = TextFiles(urls=[url]).units()
        assert [part.url for part in unit.slices] == [wanted]


def test_a_loop_of_links_ends_and_a_linked_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.txt").write_text("x")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "corpus")
    (tmp_path / "corpus" / "alias.txt").symlink_to(tmp_path / "real" / "a.txt")
    assert keys(TextFiles(urls=[str(tmp_path / "corpus")])) == ["alias.txt", "link/a.txt"]


def test_a_dangling_link_is_named(tmp_path: Path) -> None:
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nothing")
    with pytest.raises(CorpusUnreadable, match=r"gone\.txt is a dangling link"):
        list(TextFiles(urls=[str(tmp_path)]).units())


def test_nothing_found_is_a_users_mistake_that_names_the_url(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    for url in (tmp_path / "none", tmp_path / "*.py"):
        with pytest.raises(CorpusMissing) as caught:
            list(TextFiles(urls=[str(tmp_path), str(url)]).units())
        assert str(url) in str(caught.value)
        assert caught.value.exit_code == 2


def test_an_unknown_protocol_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match="nosuch://x/y"):
        list(TextFiles(urls=["nosuch://x/y"]).units())


def test_a_folder_that_may_not_be_listed_is_not_skipped(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may list any folder")
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(CorpusUnreadable, match="closed"):
        list(TextFiles(urls=[str(tmp_path)]).units())


def test_the_same_files_give_the_same_units_whatever_the_order_of_urls(tmp_path: Path) -> None:
    for i in range(20):
        (tmp_path / f"{i % 3}").mkdir(exist_ok=True)
        (tmp_path / f"{i % 3}" / f"{i}.txt").write_text("x" * i)
    urls = [f"{tmp_path}/{i}" for i in range(3)]
    first = [unit.id for unit in TextFiles(urls=urls, unit_bytes=40).units()]
    assert first == [unit.id for unit in TextFiles(urls=urls[::-1], unit_bytes=40).units()]
    assert len(set(first)) == len(first) > 3


def test_a_grown_corpus_adds_units_and_plans_no_file_twice(tmp_path: Path) -> None:
    for i in range(0, 20, 2):
        (tmp_path / f"{i:02}.txt").write_text("x" * 10)
    source = TextFiles(urls=[str(tmp_path)], unit_bytes=35)
    before = list(source.units())
    for i in range(1, 20, 2):
        (tmp_path / f"{i:02}.txt").write_text("y" * 10)
    added = list(TextFiles(urls=[str(tmp_path)], unit_bytes=90).units(planned(before)))
    urls = [part.url for unit in before + added for part in unit.slices]
    assert sorted(urls) == [str(tmp_path / f"{i:02}.txt") for i in range(20)]
    assert list(source.units(planned(before + added))) == []


def test_a_changed_file_is_refused_when_planning_again_and_when_read(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")
    source = TextFiles(urls=[str(tmp_path)])
    units = list(source.units())
    path.write_text("after!")
    os.utime(path, ns=(1, 1))
    for act in (lambda: list(source.units(planned(units))), lambda: list(source.read(units[0]))):
        with pytest.raises(CorpusChanged) as caught:
            act()
        assert str(path) in str(caught.value)
        assert "restore it" in str(caught.value)


def test_a_vanished_file_is_named_when_read(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x")
    source = TextFiles(urls=[str(tmp_path)])
    (unit,) = source.units()
    path.unlink()
    with pytest.raises(CorpusChanged, match=r"a\.txt vanished: restore it"):
        list(source.read(unit))


def test_any_kind_of_source_is_built_from_its_keys_and_unknown_keys_are_refused() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(AnySource)
    for kind in ("text", "jsonl", "parquet", "arrays"):
        source = adapter.validate_python({"kind": kind, "urls": ["x"]})
        assert adapter.validate_json(source.model_dump_json()) == source
    with pytest.raises(ValidationError, match="patern"):
        adapter.validate_python({"kind": "text", "urls": ["x"], "patern": "*"})
    with pytest.raises(ValidationError):
        adapter.validate_python({"kind": "text", "urls": []})


def test_an_object_store_is_listed_read_and_watched_for_changes(
    s3_bucket_url: tuple[str, dict[str, Any]],
) -> None:
    s3fs = pytest.importorskip("s3fs")
    url, options = s3_bucket_url
    fs = s3fs.S3FileSystem(**options)
    for i in range(40):
        fs.pipe(f"{url}/deep/{i:02}.txt", f"text {i}".encode())
    fs.pipe(f"{url}/deep/.hidden.txt", b"no")
    source = TextFiles(urls=[f"{url}/deep"], options=options)
    (unit,) = source.units()
    items = list(source.read(unit))
    assert [item.key for item in items] == [f"{i:02}.txt" for i in range(40)]
    assert all(isinstance(item, Record) and item.data["text"] == f"text {i}" for i, item in enumerate(items))
    (glob,) = TextFiles(urls=[f"{url}/deep/0*.txt"], options=options).units()
    assert len(glob.slices) == 10
    fs.pipe(f"{url}/deep/07.txt", b"text 8")  # as long as before
    with pytest.raises(CorpusChanged, match=r"07\.txt"):
        list(source.read(unit))
    with pytest.raises(CorpusChanged, match=r"07\.txt"):
        list(source.units(planned([unit])))
    fs.rm(f"{url}/deep/07.txt")
    with pytest.raises(CorpusChanged, match=r"07\.txt vanished"):
        list(source.read(unit))
    with pytest.raises(CorpusMissing):
        list(TextFiles(urls=[f"{url}/none"], options=options).units())
