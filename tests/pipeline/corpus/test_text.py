"""Text files: strict UTF-8, one record a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.corpus import Record, TextFiles
from pipeline.targets.unit import Quarantined


def test_what_is_no_utf8_or_too_large_is_quarantined_and_the_rest_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xc3\xa9\r\n")
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    (tmp_path / "c.txt").write_bytes(b"x" * 101)
    (tmp_path / "d.txt").write_bytes(b"\xef\xbb\xbfbom")
    (tmp_path / "e.txt").write_bytes(b"")
    source = TextFiles(urls=[str(tmp_path)], max_file_bytes=100)
    (unit,) = source.units()
    a, b, c, d, e = source.read(unit)
    assert isinstance(a, Record)
    assert a.data["text"] == "café\r\n"
    assert isinstance(b, Quarantined)
    assert (b.key, b.row, b.code) == ("b.txt", 1, "undecodable")
    assert str(tmp_path / "b.txt") in b.reason
    assert "0xe9 at 3" in b.reason
    assert isinstance(c, Quarantined)
    assert (c.code, c.row) == ("too_large", 2)
    assert isinstance(d, Record)
    assert d.data["text"] == "bom"
    assert isinstance(e, Record)
    assert (e.data["text"], e.row) == ("", 4)


def test_a_unit_stays_within_its_bytes_unless_one_file_is_larger(tmp_path: Path) -> None:
    sizes = [10, 20, 80, 30, 200, 1, 1, 99]
    for i, size in enumerate(sizes):
        (tmp_path / f"{i}.txt").write_text("x" * size)
    units = list(TextFiles(urls=[str(tmp_path)], unit_bytes=100).units())
    held = [[part.size for part in unit.slices] for unit in units]
    assert held == [
        [10, 20],
        [80],
        [30],
        [200],
        [1, 1],
        [99],
    ]
    assert [unit.size_bytes for unit in units] == [30, 80, 30, 200, 2, 99]


def test_a_unit_has_a_bounded_number_of_files_however_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.corpus.files.SLICES", 10)
    for i in range(21):
        (tmp_path / f"{i:05}.txt").touch()
    units = list(TextFiles(urls=[str(tmp_path)]).units())
    assert [len(unit.slices) for unit in units] == [10, 10, 1]


def test_keys_are_relative_to_what_the_urls_share(tmp_path: Path) -> None:
    for name in ("x/one/a.txt", "x/two/a.txt"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("t")
    source = TextFiles(urls=[str(tmp_path / "x" / "one"), f"{tmp_path}/x/two/*.txt"])
    (unit,) = source.units()
    assert [item.key for item in source.read(unit)] == ["one/a.txt", "two/a.txt"]
