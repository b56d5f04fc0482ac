"""WebDataset: plain `webdataset` reads it, what tar and NumPy write is read, and no member is trusted."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.targets import Rows, Spec
from pipeline.targets.containers import webdataset
from pipeline.targets.errors import CorruptShard

Members = list[tuple[tarfile.TarInfo, bytes]]


@pytest.fixture
def container() -> str:
    return "webdataset"


def written(rows: Rows) -> bytes:
    sink = io.BytesIO()
    writer = webdataset.Writer(sink, rows.spec)
    writer.write(rows.to_arrow())
    writer.close()
    return sink.getvalue()


def found(data: bytes, spec: Spec) -> Rows:
    return Rows.concatenate([Rows.from_arrow(spec, batch) for batch in webdataset.read(data, spec)])


def arrays(rows: Rows, i: int) -> dict[str, Any]:
    """What docs/format.md says that the npz of a row holds."""
    out: dict[str, Any] = {}
    for item in rows.spec.inputs:
        out[f"in.{item.name}"] = rows.inputs[item.name][i]
    for head in rows.spec.heads:
        counts = rows.counts(head)
        packed = head.codec.pack(rows.heads[head.name], counts, head.size)
        for column in head.codec.columns(head.size):
            value = packed[column.name][i]
            single = column.per_target and head.positions == "single"
            out[f"{head.name}.{column.name}"] = value[0] if single else value
    return out


@pytest.mark.parametrize("kind", ["text", "image"])
def test_plain_webdataset_reads_every_row_and_nothing_else(tmp_path: Path, kit: Any, kind: str) -> None:
    wds = pytest.importorskip("webdataset")
    rows = kit.make_rows(kit.text_spec() if kind == "text" else kit.image_spec(), 6, views=2)
    (tmp_path / "shard.tar").write_bytes(written(rows))
    samples = list(wds.WebDataset(str(tmp_path / "shard.tar"), shardshuffle=False).decode())
    assert len(samples) == len(rows) == 12
    for i, sample in enumerate(samples):
        assert sample["__key__"] == f"{i:09d}"
        told = {"key": rows.keys[i], "row": i // 2, "view": i % 2, "views": 2, "targets": rows.targets[i]}
        assert {name: sample["json"][name] for name in told} == told
        expected = arrays(rows, i)
        assert list(sample["npz"]) == list(expected)
        for name, array in expected.items():
            np.testing.assert_array_equal(sample["npz"][name], array, strict=True)


def test_the_shards_metadata_is_in_a_global_header_that_tar_readers_pass_over(kit: Any) -> None:
    rows = kit.make_rows(kit.text_spec(teacher={"kind": "ü", "fingerprint": "x"}), 2)
    with tarfile.open(fileobj=io.BytesIO(written(rows))) as tar:
        assert tar.getnames() == [f"00000000{i}.{kind}" for i in (0, 1) for kind in ("json", "npz")]
        assert tar.pax_headers["decant.spec"] == rows.spec.to_json()
        assert tar.pax_headers["decant.spec_fingerprint"] == rows.spec.fingerprint
        assert tar.pax_headers["decant.format_version"] == "2"
        facts = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode, m.type) for m in tar}
        assert facts == {(0, 0, 0, "", "", 0o644, tarfile.REGTYPE)}


def sample(identity: dict[str, Any], npz: bytes, number: int = 0) -> Members:
    """A row's two members, by docs/format.md alone."""
    plain = {name: identity[name] for name in ("key", "row", "targets", "view", "views")}
    text = json.dumps(plain, sort_keys=True, ensure_ascii=False).encode()
    whole = json.dumps({**plain, "crc32": zlib.crc32(npz + text)}, sort_keys=True, ensure_ascii=False)
    return [member(f"{number:09d}.json", whole.encode()), member(f"{number:09d}.npz", npz)]


def member(name: str, data: bytes, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def tar_of(members: Members, spec: Spec, form: int = tarfile.PAX_FORMAT) -> bytes:
    sink, metadata = io.BytesIO(), spec.schema().metadata
    headers = {key.decode(): value.decode() for key, value in metadata.items()}
    with tarfile.open(fileobj=sink, mode="w", format=form, pax_headers=headers) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
        end = tar.offset
    return sink.getvalue()[:end] + bytes(1024)


def savez(values: dict[str, Any], **changes: Any) -> bytes:
    sink = io.BytesIO()
    np.savez(sink, **{**values, **changes})
    return sink.getvalue()


def identities(rows: Rows) -> list[dict[str, Any]]:
    names = ("row", "view", "views", "targets")
    return [
        {"key": key, **{name: int(getattr(rows, name)[i]) for name in names}}
        for i, key in enumerate(rows.keys)
    ]


@pytest.mark.parametrize("kind", ["text", "image"])
def test_a_shard_made_by_tarfile_and_numpy_from_the_description_is_read(kit: Any, kind: str) -> None:
    rows = kit.make_rows(kit.text_spec() if kind == "text" else kit.image_spec(), 5)
    members: Members = []
    for i, identity in enumerate(identities(rows)):
        members += sample(identity, savez(arrays(rows, i)), i)
    assert kit.same(found(tar_of(members, rows.spec), rows.spec), rows)


def bomb(values: dict[str, Any]) -> bytes:
    sink = io.BytesIO()
    np.savez_compressed(sink, **{**values, "in.tokens": np.zeros(10**7, "<u2")})
    return sink.getvalue()


def huge(values: dict[str, Any]) -> bytes:
    """An npy that says to have 2**40 items."""
    header = io.BytesIO()
    fields = {"descr": "<u2", "fortran_order": False, "shape": (2**40,)}
    np.lib.format.write_array_header_1_0(header, fields)
    sink = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(savez(values))) as old, zipfile.ZipFile(sink, "w") as new:
        for name in old.namelist():
            new.writestr(name, header.getvalue() if name == "in.tokens.npy" else old.read(name))
    return sink.getvalue()


class Explosive:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("unpickled",))


NPZ: dict[str, tuple[Callable[[dict[str, Any]], bytes], str]] = {
    "a pickled array": (lambda v: savez(v, **{"in.tokens": np.array([Explosive()], object)}), "in.tokens"),
    "a pickle": (lambda v: pickle.dumps(Explosive()), "does not decode"),
    "a zip bomb": (bomb, "not stored as it is"),
    "a shape of 2**40 items": (huge, "has not the bytes of its shape|is of"),
    "another dtype": (lambda v: savez(v, **{"in.tokens": v["in.tokens"].astype("<u4")}), "is of <u4"),
    "big-endian values": (lambda v: savez(v, **{"in.tokens": v["in.tokens"].astype(">u2")}), "is of >u2"),
    "a scalar": (lambda v: savez(v, **{"in.tokens": np.uint16(3)}), "in.tokens"),
    "another shape": (lambda v: savez(v, **{"topic.logits": np.zeros((2, 4), "<f2")}), "topic.logits"),
    "an array too many": (lambda v: savez(v, extra=np.zeros(1)), "extra"),
    "an array too few": (lambda v: savez({n: a for n, a in v.items() if n != "in.tokens"}), "it holds"),
    "Fortran order": (
        lambda v: savez(v, **{"topic.logits": np.asfortranarray(np.zeros((2, 2), "<f2"))}),
        "topic.logits",
    ),
    "no zip": (lambda v: b"hello", "does not decode"),
    "nothing": (lambda v: b"", "does not decode"),
}


@pytest.mark.parametrize(("make", "why"), NPZ.values(), ids=NPZ.keys())
def test_an_npz_that_is_not_the_rows_arrays_is_refused_by_name(
    kit: Any, make: Callable[[dict[str, Any]], bytes], why: str
) -> None:
    rows = kit.make_rows(kit.text_spec(), 1)
    data = tar_of(sample(identities(rows)[0], make(arrays(rows, 0))), rows.spec)
    with pytest.raises(CorruptShard, match=rf"000000000\.npz.*({why})"):
        list(webdataset.read(data, rows.spec))


MEMBERS: dict[str, tuple[Callable[[Members], Members], str]] = {
    "a name that leaves": (lambda m: [*m, member("../evil.json", b"{}")], r"'\.\./evil\.json'"),
    "an absolute name": (lambda m: [*m, member("/etc/passwd", b"x")], "'/etc/passwd'"),
    "a symbolic link": (
        lambda m: [member(m[0][0].name, b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"), *m[1:]],
        "a symbolic link",
    ),
    "a hard link": (
        lambda m: [m[0], member(m[1][0].name, b"", type=tarfile.LNKTYPE, linkname=m[0][0].name), *m[2:]],
        "a hard link",
    ),
    "a folder": (lambda m: [member("000000000.json", b"", type=tarfile.DIRTYPE), *m], "a folder"),
    "a device": (lambda m: [member("000000000.json", b"", type=tarfile.CHRTYPE), *m], "of type b'3'"),
    "a sample twice": (lambda m: [*m[:2], *m], "000000001.json belongs stands '000000000.json'"),
    "a row missing": (lambda m: m[2:], "000000000.json belongs stands '000000001.json'"),
    "a json missing": (lambda m: m[1:], "000000000.json belongs stands '000000000.npz'"),
    "an npz missing": (lambda m: m[:-1], "000000001.npz belongs stands '', the end"),
    "a member of somebody's": (lambda m: [*m[:2], member("000000000.txt", b"hi"), *m[2:]], "000000000.txt"),
    "a name of its own header": (lambda m: [member("ü" * 200, b""), *m], "of type b'x'"),
    "another row's npz": (lambda m: [m[0], (m[1][0], m[3][1].ljust(m[1][0].size, b"\0")), *m[2:]], "crc32"),
}


@pytest.mark.parametrize(("change", "why"), MEMBERS.values(), ids=MEMBERS.keys())
def test_a_tar_of_other_members_is_refused_by_name(
    kit: Any, change: Callable[[Members], Members], why: str
) -> None:
    rows = kit.make_rows(kit.text_spec(), 2)
    with tarfile.open(fileobj=io.BytesIO(written(rows))) as tar:
        members = [(info, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]
    for info, _ in members:
        info.pax_headers = {}
    changed = change(members)
    for info, data in changed:
        info.size = len(data)
    with pytest.raises(CorruptShard, match=why):
        list(webdataset.read(tar_of(changed, rows.spec), rows.spec))


def test_a_member_that_claims_more_bytes_than_the_file_has_is_refused(kit: Any) -> None:
    rows = kit.make_rows(kit.text_spec(), 1)
    data = written(rows)
    start = data.index(b"000000000.npz")
    for size in (2**33 - 1, 10**6):
        info = tarfile.TarInfo("000000000.npz")
        info.size = size
        lying = data[:start] + info.tobuf(tarfile.USTAR_FORMAT) + data[start + 512 :]
        with pytest.raises(CorruptShard, match=f"claims {size} bytes"):
            list(webdataset.read(lying, rows.spec))


@pytest.mark.parametrize(
    "change",
    [
        {"row": True},
        {"row": "0"},
        {"row": 2**70},
        {"view": 2**31},
        {"key": 7},
        {"key": None},
        {"targets": 1.5},
        {"key": "\ud800"},
    ],
    ids=str,
)
def test_an_identity_of_other_types_is_refused(kit: Any, change: dict[str, Any]) -> None:
    rows = kit.make_rows(kit.text_spec(), 1)
    npz = savez(arrays(rows, 0))
    fields = {**identities(rows)[0], **change}
    text = json.dumps(fields, sort_keys=True).encode()
    whole = json.dumps({**fields, "crc32": zlib.crc32(npz + text)}, sort_keys=True).encode()
    data = tar_of([member("000000000.json", whole), member("000000000.npz", npz)], rows.spec)
    with pytest.raises(CorruptShard):
        list(webdataset.read(data, rows.spec))


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"[" * 100_000, b'{"key": NaN}', b"\xff"])
def test_a_json_that_is_no_identity_is_refused_by_name(kit: Any, text: bytes) -> None:
    rows = kit.make_rows(kit.text_spec(), 1)
    members = [member("000000000.json", text), member("000000000.npz", savez(arrays(rows, 0)))]
    with pytest.raises(CorruptShard, match=r"000000000\.json"):
        list(webdataset.read(tar_of(members, rows.spec), rows.spec))


def test_a_compressed_tar_or_one_without_a_global_header_is_refused(kit: Any) -> None:
    rows = kit.make_rows(kit.text_spec(), 1)
    data = written(rows)
    with pytest.raises(CorruptShard, match="no tar header"):
        list(webdataset.read(gzip.compress(data), rows.spec))
    with pytest.raises(CorruptShard, match="global PAX header"):
        list(webdataset.read(data[data.index(b"000000000.json") :], rows.spec))
