"""JSON Lines: every record once, whatever the cut, and no line that spoils another."""

from __future__ import annotations

import gzip
import io
import json
import tempfile
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus import JsonLines, Record
from pipeline.corpus.jsonl import lines
from pipeline.targets.errors import CorpusUnreadable
from pipeline.targets.unit import Quarantined

LINES = st.lists(
    st.one_of(
        st.text(max_size=12).map(lambda text: json.dumps({"text": text}, ensure_ascii=False).encode()),
        st.sampled_from([b"", b"   ", b"[1]", b"{", b'{"text": 3}', b'{"text": "caf\xe9"}', b"x" * 90]),
    ),
    max_size=12,
)


def press(suffix: str, content: bytes) -> bytes:
    return gzip.compress(content) if suffix == "gz" else pa.compress(content, "zstd", asbytes=True)


def read(source: JsonLines) -> list[Record | Quarantined]:
    items: list[Record | Quarantined] = []
    for unit in source.units():
        found = list(source.read(unit))
        assert [item.row for item in found] == list(range(len(found)))
        items += found
    return items


def expected(content: bytes, limit: int) -> list[tuple[str, str | None]]:
    """Key and text of each record, by the plainest reading of the whole file."""
    result: list[tuple[str, str | None]] = []
    offset = 0
    for line in io.BytesIO(content):
        if line.strip():
            text = None
            if len(line.rstrip(b"\n")) <= limit:
                try:
                    item = json.loads(line.decode())
                    text = item["text"] if isinstance(item["text"], str) else None
                except (ValueError, TypeError, KeyError):
                    text = None
            result.append((f"f.jsonl@{offset}", text))
        offset += len(line)
    return result


@settings(max_examples=150)
@given(LINES, st.sampled_from([b"\n", b"\r\n"]), st.booleans(), st.integers(1, 120))
def test_any_cut_gives_every_record_of_the_file_once(
    rows: list[bytes], ending: bytes, ended: bool, unit_bytes: int
) -> None:
    content = ending.join(rows) + (ending if ended else b"")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "f.jsonl"
        path.write_bytes(content)
        items = read(JsonLines(urls=[str(path)], unit_bytes=unit_bytes, max_record_bytes=60))
    got = [(i.key, i.data["text"] if isinstance(i, Record) else None) for i in items]
    assert got == expected(content, 60)


def test_each_way_to_be_no_record_is_quarantined_with_file_and_place(tmp_path: Path) -> None:
    bad = {
        b'{"text": "a"': "no JSON",
        b'["text"]': "a JSON list",
        b'{"body": "a"}': "column 'text' is missing",
        b'{"text": null}': "column 'text' is a JSON NoneType",
        b'{"text": "\xff"}': "no UTF-8",
        b'{"text": "\\ud800"}': "lone surrogate",
        b"[" * 100_000: "no JSON",
    }
    path = tmp_path / "f.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "first"}\n' + b"\n".join(bad) + b'\n{"text": "last"}')
    first, *middle, last = read(JsonLines(urls=[str(path)]))
    assert isinstance(first, Record)
    assert first.data["text"] == "first"
    assert isinstance(last, Record)
    assert last.data["text"] == "last"
    assert len(middle) == len(bad)
    for item, reason in zip(middle, bad.values(), strict=True):
        assert isinstance(item, Quarantined)
        assert item.code == "undecodable"
        assert item.reason.startswith(item.key)
        assert reason in item.reason


def test_the_key_column_names_the_record(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text(
        '{"id": "a", "text": "x"}\n{"id": 7, "text": "y"}\n{"text": "z"}\n{"id": true, "text": "z"}\n'
    )
    a, b, c, d = read(JsonLines(urls=[str(path)], key_column="id"))
    assert (a.key, b.key) == ("a", "7")
    assert isinstance(c, Quarantined)
    assert "key column 'id' is missing" in c.reason
    assert isinstance(d, Quarantined)


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_compressed_file_is_one_slice_read_as_a_stream_over_all_its_members(
    tmp_path: Path, suffix: str
) -> None:
    parts = ["".join(json.dumps({"text": f"{part} {i}"}) + "\n" for i in range(500)) for part in range(3)]
    path = tmp_path / f"f.jsonl.{suffix}"
    path.write_bytes(b"".join(press(suffix, part.encode()) for part in parts))
    source = JsonLines(urls=[str(tmp_path)], unit_bytes=100)
    (unit,) = source.units()
    items = list(source.read(unit))
    assert [item.key for item in items] == [f"f.jsonl.{suffix}#{i}" for i in range(1500)]
    assert [item.data["text"] for item in items if isinstance(item, Record)] == [
        f"{part} {i}" for part in range(3) for i in range(500)
    ]


@pytest.mark.parametrize("suffix", ["gz", "zst"])
@pytest.mark.parametrize("damage", ["truncated", "noise"])
def test_a_broken_compressed_file_is_named(tmp_path: Path, suffix: str, damage: str) -> None:
    whole = press(suffix, "".join(json.dumps({"text": str(i)}) + "\n" for i in range(5000)).encode())
    path = tmp_path / f"f.jsonl.{suffix}"
    path.write_bytes(whole[: len(whole) // 2] if damage == "truncated" else b"no archive at all" * 9)
    with pytest.raises(CorpusUnreadable) as caught:
        read(JsonLines(urls=[str(path)]))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_bomb_of_one_line_costs_no_memory(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"f.jsonl.{suffix}"
    path.write_bytes(press(suffix, b"x" * (64 << 20) + b'\n{"text": "after"}\n'))
    assert path.stat().st_size < 1 << 20
    source = JsonLines(urls=[str(path)], max_record_bytes=1 << 20)
    pool = pa.default_memory_pool()
    watched = pa.proxy_memory_pool(pool)
    pa.set_memory_pool(watched)
    tracemalloc.start()
    try:
        long, after = read(source)
        peak = tracemalloc.get_traced_memory()[1] + watched.max_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(pool)
    assert isinstance(long, Quarantined)
    assert long.code == "too_large"
    assert isinstance(after, Record)
    assert peak < 16 << 20


@given(st.lists(st.integers(0, 9), max_size=9), st.integers(1, 9), st.booleans())
def test_lines_account_for_every_byte(lengths: list[int], limit: int, ended: bool) -> None:
    content = b"\n".join(b"x" * n for n in lengths) + (b"\n" if ended else b"")
    found = list(lines(io.BytesIO(content), limit))
    assert sum(length for _, length in found) == len(content)
    for line, length in found:
        assert line is None or len(line) == length <= limit + 1
