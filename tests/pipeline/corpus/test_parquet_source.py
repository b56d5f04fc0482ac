"""Parquet as a corpus: every row once, whatever the row groups."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus import ParquetFiles, Record
from pipeline.targets.errors import ConfigError, CorpusUnreadable
from pipeline.targets.unit import Quarantined


def read(source: ParquetFiles) -> list[Record | Quarantined]:
    return [item for unit in source.units() for item in source.read(unit)]


@settings(max_examples=25)
@given(st.lists(st.integers(0, 700), min_size=1, max_size=2), st.integers(40, 400), st.integers(30, 900))
def test_any_cut_gives_every_row_once(counts: list[int], group: int, unit_rows: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for f, count in enumerate(counts):
            table = pa.table({"text": [f"{f} {i}" for i in range(count)], "other": list(range(count))})
            pq.write_table(table, f"{folder}/{f}.parquet", row_group_size=group)
        source = ParquetFiles(urls=[folder], unit_rows=unit_rows)
        units = list(source.units())
        items = [item for unit in units for item in source.read(unit)]
    rows = [(f, i) for f, count in enumerate(counts) for i in range(count)]
    assert [item.key for item in items] == [f"{f}.parquet#{i}" for f, i in rows]
    texts = [item.data["text"] for item in items if isinstance(item, Record)]
    assert texts == [f"{f} {i}" for f, i in rows]
    assert all(sum(part.stop - part.start for part in unit.slices) <= unit_rows for unit in units)


def test_nulls_and_bytes_that_are_no_utf8_are_quarantined_alone(tmp_path: Path) -> None:
    column = pa.array([b"a", None, b"\xff", "é".encode()], pa.binary())
    pq.write_table(pa.table({"text": column, "id": [1, 2, 3, None]}), tmp_path / "f.parquet")
    a, b, c, d = read(ParquetFiles(urls=[str(tmp_path)]))
    assert isinstance(a, Record)
    assert isinstance(d, Record)
    assert d.data["text"] == "é"
    for item, reason in ((b, "f.parquet#1: no value in 'text'"), (c, "f.parquet#2: no UTF-8")):
        assert isinstance(item, Quarantined)
        assert (item.code, reason in item.reason) == ("undecodable", True)
    keyed = read(ParquetFiles(urls=[str(tmp_path)], key_column="id"))
    assert [item.key for item in keyed] == ["1", "f.parquet#1", "f.parquet#2", "f.parquet#3"]
    assert isinstance(keyed[3], Quarantined)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()], ids=str)
def test_a_text_or_a_key_declared_a_string_that_is_no_utf8_is_quarantined_alone(
    tmp_path: Path, kind: pa.DataType
) -> None:
    """Writers do not always look: Arrow takes any bytes for a string's."""

    def strings(*values: bytes) -> pa.Array:
        binary = pa.array(values, pa.large_binary() if pa.types.is_large_string(kind) else pa.binary())
        return pa.Array.from_buffers(kind, len(binary), binary.buffers())

    table = pa.table({"text": strings(b"a", b"b\xff", b"c"), "id": strings(b"x", b"y", b"\xc3\xa9\xc3")})
    pq.write_table(table, tmp_path / "f.parquet")
    a, b, c = read(ParquetFiles(urls=[str(tmp_path)], key_column="id"))
    assert isinstance(a, Record)
    assert (a.key, a.data["text"]) == ("x", "a")
    for item, key, reason in (
        (b, "#1", "no UTF-8 at byte 1 of 'text'"),
        (c, "#2", "no UTF-8 at byte 2 of 'id'"),
    ):
        assert isinstance(item, Quarantined)
        assert (item.key, item.code) == (f"f.parquet{key}", "undecodable")
        assert item.reason == f"f.parquet{key}: {reason}"


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_every_arrow_type_of_text_is_read(tmp_path: Path, kind: pa.DataType) -> None:
    texts = ["a", "b", "a", "ü"]
    pq.write_table(pa.table({"text": pa.array(texts).cast(kind)}), tmp_path / "f.parquet")
    items = read(ParquetFiles(urls=[str(tmp_path)]))
    assert [item.data["text"] for item in items if isinstance(item, Record)] == texts


def test_a_wrong_column_is_refused_when_planning_by_file_and_name(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["a"], "n": [1.5]}), tmp_path / "f.parquet")
    with pytest.raises(ConfigError, match=r"f\.parquet has no column 'text', it has \['body', 'n'\]"):
        read(ParquetFiles(urls=[str(tmp_path)]))
    with pytest.raises(ConfigError, match=r"column 'n' of .*f\.parquet is of type double"):
        read(ParquetFiles(urls=[str(tmp_path)], text_column="n"))


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "f.parquet"
    path.write_bytes(b"PAR1 this is none")
    with pytest.raises(CorpusUnreadable, match=r"f\.parquet is broken or no Parquet"):
        read(ParquetFiles(urls=[str(path)]))


def test_only_the_needed_columns_are_read(tmp_path: Path) -> None:
    path = tmp_path / "f.parquet"
    pq.write_table(
        pa.table({"text": ["a"] * 2000, "big": [b"x" * 500] * 2000}),
        path,
        use_dictionary=False,
        compression="none",
    )
    source = ParquetFiles(urls=[str(path)])
    # Damage in a column that nobody reads goes unnoticed: it was not read.
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 1000] = b"\0" * 1000
    path.write_bytes(data)
    (unit,) = source.units()
    assert len(list(source.read(unit))) == 2000
