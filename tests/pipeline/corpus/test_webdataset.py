"""WebDataset tars: every sample once, whatever the cut; none that does harm or loses one silently."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import tarfile
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus import Filtered, Record, WebDatasetTars
from pipeline.targets.errors import CorpusUnreadable
from pipeline.targets.unit import Quarantined
from tests.pipeline.corpus.corpora import read

Entry = tuple[str, bytes] | tarfile.TarInfo


def tar(*entries: Entry, form: int = tarfile.PAX_FORMAT) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=form) as archive:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                archive.addfile(entry)
            else:
                info = tarfile.TarInfo(entry[0])
                info.size = len(entry[1])
                archive.addfile(info, io.BytesIO(entry[1]))
    return sink.getvalue()


def other(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 1500), st.booleans(), st.integers(1, 130)), max_size=8),
    st.sampled_from(["tar", "tar.gz", "tgz", "tar.zst"]),
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    st.integers(512, 8000),
)
def test_any_cut_of_any_form_gives_every_sample_once(
    samples: list[tuple[int, bool, int]], suffix: str, form: int, unit_bytes: int
) -> None:
    """Names of more than 100 characters have an extended header, at which a cut must begin."""
    wanted: list[tuple[str, dict[str, Any]]] = []
    entries: list[Entry] = [other("folder", tarfile.DIRTYPE)]
    for i, (size, captioned, length) in enumerate(samples):
        key = f"folder/{i:03}{'k' * (min(length, 90) if form == tarfile.USTAR_FORMAT else length)}"
        entries.append((f"{key}.jpg", bytes([i]) * size))
        wanted.append((key, {"image": bytes([i]) * size}))
        if captioned:
            entries += [(f"{key}.TXT", f"sample {i}é".encode()), (f"{key}.cls", b"3")]
            wanted[-1][1]["text"] = f"sample {i}é"
    content = tar(*entries, form=form)
    if suffix == "tar.zst":
        content = pa.compress(content, "zstd", asbytes=True)
    elif suffix != "tar":
        content = gzip.compress(content)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a.{suffix}"
        path.write_bytes(content)
        items = read(WebDatasetTars(urls=[folder], unit_bytes=unit_bytes))
    assert [(item.key, item.data) for item in items] == [(f"a.{suffix}#{key}", data) for key, data in wanted]


def test_a_large_tar_is_cut_between_samples_into_units_of_bounded_size(tmp_path: Path) -> None:
    pairs = [(f"{i:03}.{e}", b"x" * 700) for i in range(40) for e in ("jpg", "txt")]
    (tmp_path / "a.tar").write_bytes(tar(*pairs))
    units = list(WebDatasetTars(urls=[str(tmp_path)], unit_bytes=20_000).units())
    slices = [part for unit in units for part in unit.slices]
    assert len(slices) > 4
    assert all(part.stop - part.start <= 20_000 for part in slices[:-1])
    assert [part.stop for part in slices[:-1]] == [part.start for part in slices[1:]]


def test_a_tar_that_the_library_wrote_is_read_as_the_library_reads_it(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    path = tmp_path / "a.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for i in range(9):
            writer.write({"__key__": f"part.1/{i}", "png": bytes([i]) * 99, "json": {"n": i}, "cls": i})
    theirs = list(webdataset.WebDataset(str(path), shardshuffle=False))
    ours = read(WebDatasetTars(urls=[str(path)], fields={"image": ["png"], "json": ["json"]}))
    assert [item.key for item in ours] == [f"a.tar#{sample['__key__']}" for sample in theirs]
    assert [item.data["image"] for item in ours] == [sample["png"] for sample in theirs]
    assert [item.data["json"] for item in ours] == [json.loads(sample["json"]) for sample in theirs]


def test_named_fields_take_the_first_extension_that_a_sample_has(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(
        tar(("1.png", b"p"), ("1.seg.png", b"s"), ("1.jpg", b"j"), ("2.seg.png", b"s"), ("3.gif", b"g"))
    )
    first, second, third = read(WebDatasetTars(urls=[str(tmp_path)], fields={"x": ["jpg", "png", "seg.png"]}))
    assert (first.data, second.data) == ({"x": b"j"}, {"x": b"s"})
    assert isinstance(third, Quarantined)
    assert third.reason == "a.tar#3: it has no member .jpg, .png, .seg.png"


def test_each_sample_that_is_hostile_or_broken_is_quarantined_alone(tmp_path: Path) -> None:
    entries: list[Entry] = [
        ("good.txt", b"good"),
        other("link.txt", tarfile.SYMTYPE, "/etc/passwd"),
        other("hard.txt", tarfile.LNKTYPE, "good.txt"),
        other("pipe.txt", tarfile.FIFOTYPE),
        ("../../escape.txt", b"out"),
        ("/etc/absolute.txt", b"out"),
        ("twice.txt", b"a"),
        ("twice.txt", b"b"),
        ("latin.txt", b"caf\xe9"),
        ("deep.json", b"[" * 4900),
        ("big.jpg", b"x" * 5001),
        ("nothing.bin", b"x"),
        ("good.txt", b"again"),
        ("last.txt", b"last"),
    ]
    (tmp_path / "a.tar").write_bytes(tar(*entries))
    (tmp_path / "b.tgz").write_bytes(gzip.compress(tar(*entries)))
    reasons = {
        "link": "link.txt is a link",
        "hard": "hard.txt is a link",
        "pipe": "pipe.txt is a device or a pipe",
        "../../escape": "../../escape.txt is a path that leaves the archive",
        "/etc/absolute": "a path that leaves the archive",
        "twice": "two members are named twice.txt",
        "latin": "can't decode byte 0xe9",
        "deep": "recursion",
        "big": "more than max_record_bytes (5000)",
        "nothing": "it has no member",
        "good": "another sample before it has the same key",
    }
    for name in ("a.tar", "b.tgz"):
        first, *bad, last = read(WebDatasetTars(urls=[str(tmp_path / name)], max_record_bytes=5000))
        assert (first.data, last.data) == ({"text": "good"}, {"text": "last"})
        assert [item.key for item in bad] == [f"{name}#{key}" for key in reasons]
        for item, reason in zip(bad, reasons.values(), strict=True):
            assert isinstance(item, Quarantined)
            assert reason in item.reason
            assert item.reason.startswith(item.key)


def test_what_is_no_part_of_a_sample_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(
        tar(("README", b"r"), ("._1.txt", b"mac"), ("__meta__.json", b"{}"), ("./1.txt", b"one"))
    )
    (item,) = read(WebDatasetTars(urls=[str(tmp_path)]))
    assert (item.key, item.data) == ("a.tar#1", {"text": "one"})


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_a_tar_that_ends_early_anywhere_is_named_and_never_taken_for_a_shorter_one(
    tmp_path: Path, suffix: str
) -> None:
    whole = tar(*((f"{i}.txt", b"x" * 600) for i in range(3)))[: 3 * 1536 + 1024]
    path = tmp_path / f"a.{suffix}"
    for stop in (0, 100, 512, 700, 1536, 2000, 3 * 1536):
        path.write_bytes(whole[:stop] if suffix == "tar" else gzip.compress(whole[:stop]))
        with pytest.raises(CorpusUnreadable, match=r"a\.tar.* is broken or no tar"):
            read(WebDatasetTars(urls=[str(path)]))
    path.write_bytes(whole if suffix == "tar" else gzip.compress(whole)[:-20])
    if suffix == "tar":
        assert len(read(WebDatasetTars(urls=[str(path)]))) == 3
    else:
        with pytest.raises(CorpusUnreadable):
            read(WebDatasetTars(urls=[str(path)]))


def test_damage_in_the_middle_is_named_where_tarfile_would_stop_silently(tmp_path: Path) -> None:
    content = bytearray(tar(*((f"{i}.txt", b"x" * 600) for i in range(3))))
    content[1536 : 1536 + 512] = b"\xff" * 512
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    with tarfile.open(path) as archive:
        assert archive.getnames() == ["0.txt"]
    with pytest.raises(CorpusUnreadable, match="no header at byte 1536"):
        read(WebDatasetTars(urls=[str(path)]))
    path.write_bytes(tar(("0.txt", b"a")) + tar(("1.txt", b"b")))
    with pytest.raises(CorpusUnreadable, match="something follows the end"):
        read(WebDatasetTars(urls=[str(path)]))


@settings(max_examples=120)
@given(st.data())
def test_any_damage_gives_records_quarantine_or_one_sentence(data: st.DataObject) -> None:
    content = bytearray(tar(("a" * 120 + ".txt", b"x" * 50), ("1.txt", b"y" * 600), form=tarfile.PAX_FORMAT))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tar"
        path.write_bytes(content)
        for unit_bytes in (600, 10**6):
            with contextlib.suppress(CorpusUnreadable):
                for item in read(WebDatasetTars(urls=[folder], unit_bytes=unit_bytes)):
                    assert isinstance(item, Record | Quarantined)
                    item.key.encode()


def test_bombs_of_a_member_and_of_a_header_cost_no_memory(tmp_path: Path) -> None:
    member = tar(("big.jpg", bytes(64 << 20)), ("last.txt", b"last"))
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 64 << 20
    (tmp_path / "a.tgz").write_bytes(gzip.compress(member, 1))
    (tmp_path / "b.tgz").write_bytes(gzip.compress(header.tobuf() + bytes(64 << 20), 1))
    del member
    tracemalloc.start()
    try:
        big, last = read(WebDatasetTars(urls=[str(tmp_path / "a.tgz")], max_record_bytes=1 << 20))
        with pytest.raises(CorpusUnreadable, match="it claims"):
            read(WebDatasetTars(urls=[str(tmp_path / "b.tgz")]))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (big.code, last.data) == ("too_large", {"text": "last"})
    assert peak < 16 << 20


def test_a_sample_that_is_not_chosen_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar(("yes.json", b"1"), ("no.json", b"no JSON")))
    yes, no = read(WebDatasetTars(urls=[str(tmp_path)], where={"key_not": "#no"}))
    assert isinstance(yes, Record)
    assert no == Filtered("a.tar#no", 1)
