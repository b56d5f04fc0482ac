"""Folders of images and sounds, and source trees: which files are records, and their bytes untouched."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.corpus import AudioFiles, Filtered, ImageFiles, Record, SourceTree
from pipeline.corpus.whole_files import WholeFiles
from pipeline.targets.unit import Quarantined


def contents(source: WholeFiles) -> dict[str, object]:
    items = [item for unit in source.units() for item in source.read(unit)]
    return {item.key: next(iter(item.data.values())) for item in items if isinstance(item, Record)}


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def test_files_that_are_named_like_images_or_sounds_are_records_whatever_is_in_them(tmp_path: Path) -> None:
    fill(tmp_path, "cat/1.JPEG", "cat/2.png", "dog/3.webp", "a.WAV", "b.flac", "labels.csv", ".hidden.png")
    assert contents(ImageFiles(urls=[str(tmp_path)])) == {
        name: name.encode() for name in ("cat/1.JPEG", "cat/2.png", "dog/3.webp")
    }
    assert contents(AudioFiles(urls=[str(tmp_path)])) == {name: name.encode() for name in ("a.WAV", "b.flac")}
    assert list(contents(ImageFiles(urls=[str(tmp_path)], pattern="cat/*.png"))) == ["cat/2.png"]
    (item,) = ImageFiles(urls=[f"{tmp_path}/dog/*"]).read(
        next(ImageFiles(urls=[f"{tmp_path}/dog/*"]).units())
    )
    assert isinstance(item, Record)
    assert item.data == {"image": b"dog/3.webp"}


@pytest.mark.parametrize("source", [ImageFiles, AudioFiles], ids=["images", "audio"])
def test_a_large_file_is_quarantined_unread(tmp_path: Path, source: type[WholeFiles]) -> None:
    suffix = {"ImageFiles": "png", "AudioFiles": "wav"}[source.__name__]
    (tmp_path / f"a.{suffix}").write_bytes(b"x" * 11)
    (tmp_path / f"b.{suffix}").write_bytes(b"x" * 10)
    files = source.model_validate({"urls": [str(tmp_path)], "max_file_bytes": 10})
    (unit,) = files.units()
    large, fitting = files.read(unit)
    assert isinstance(large, Quarantined)
    assert (large.code, large.key) == ("too_large", f"a.{suffix}")
    assert isinstance(fitting, Record)


def test_of_a_source_tree_only_its_own_sources_are_taken(tmp_path: Path) -> None:
    own = ("src/main.py", "src/lib/vendored.c", "Makefile", "building/notes.md")
    fill(tmp_path, *own)
    fill(tmp_path, "node_modules/x/index.js", "web/node_modules/y.js", "third_party/z.c", "build/out.c")
    fill(tmp_path, "web/app.min.js", "poetry.lock", "api_pb2.py", ".git/config", ".github/ci.yml")
    (tmp_path / "src" / "logo.dat").write_bytes(b"GIF89a\0\0")
    (tmp_path / "src" / "table.c").write_bytes(b"x" * 2000)
    (tmp_path / "src" / "latin.c").write_bytes(b"caf\xe9")
    tree = SourceTree(urls=[str(tmp_path)], max_file_bytes=1000)
    items = {item.key: item for unit in tree.units() for item in tree.read(unit)}
    assert {key for key, item in items.items() if isinstance(item, Record)} == set(own)
    assert {key for key, item in items.items() if isinstance(item, Filtered)} == {
        "src/logo.dat",
        "src/table.c",
    }
    assert isinstance(items["src/latin.c"], Quarantined)
    everything = contents(SourceTree(urls=[str(tmp_path)], foreign=True, exclude=["web/**"]))
    assert {"third_party/z.c", "build/out.c", "poetry.lock"} < set(everything)
    assert not any(key.startswith(("web/", ".git")) for key in everything)
