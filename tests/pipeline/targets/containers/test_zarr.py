"""Zarr: the library opens it as it is, what the library writes is read, and no metadata is believed."""

from __future__ import annotations

import io
import json
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.targets import Input, Ragged, Rows, Spec
from pipeline.targets.codecs import TopK
from pipeline.targets.containers import zarr as container_zarr
from pipeline.targets.containers import zarr_zip
from pipeline.targets.errors import CorruptShard

Members = dict[str, bytes]


@pytest.fixture
def container() -> str:
    return "zarr"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks, shards and blocks of a few items, so that a few rows have many."""
    monkeypatch.setattr(zarr_zip, "CHUNK_BYTES", 32)
    monkeypatch.setattr(zarr_zip, "SHARD_CHUNKS", 3)
    monkeypatch.setattr(container_zarr, "BLOCK_ROWS", 4)
    monkeypatch.setattr(container_zarr, "BATCH_BYTES", 300)


def written(rows: Rows, batch_bytes: int = 2**21) -> bytes:
    sink = io.BytesIO()
    writer = container_zarr.Writer(sink, rows.spec, batch_bytes)
    writer.write(rows.to_arrow())
    writer.close()
    return sink.getvalue()


def found(data: bytes, spec: Spec) -> Rows:
    return Rows.concatenate([Rows.from_arrow(spec, batch) for batch in container_zarr.read(data, spec)])


def opened(path: Path) -> Any:
    zarr = pytest.importorskip("zarr")
    return zarr.open_group(zarr.storage.ZipStore(path, mode="r"), mode="r")


def arrays(rows: Rows) -> dict[str, Any]:
    """What docs/format.md says that the group of some rows holds."""
    keys = [np.frombuffer(key.encode(), np.uint8) for key in rows.keys]
    columns: dict[str, Any] = {
        "key": Ragged(np.concatenate(keys), np.cumsum([0, *map(len, keys)])),
        **{name: getattr(rows, name) for name in ("row", "view", "views", "targets")},
        **{f"in.{item.name}": rows.inputs[item.name] for item in rows.spec.inputs},
    }
    for head in rows.spec.heads:
        counts = rows.counts(head)
        packed = head.codec.pack(rows.heads[head.name], counts, head.size)
        for column in head.codec.columns(head.size):
            stored = packed[column.name]
            columns[f"{head.name}.{column.name}"] = stored.values if column.per_target else stored
    out = {}
    for name, stored in columns.items():
        out[name] = stored.values if isinstance(stored, Ragged) else stored
        if isinstance(stored, Ragged):
            out[f"offsets/{name}"] = stored.offsets
    return out


@pytest.mark.parametrize("kind", ["text", "image"])
def test_plain_zarr_opens_arrays_of_their_own_types(tmp_path: Path, kit: Any, kind: str) -> None:
    rows = kit.make_rows(kit.text_spec() if kind == "text" else kit.image_spec(), 30, views=2)
    (tmp_path / "x.zarr.zip").write_bytes(written(rows))
    group, expected = opened(tmp_path / "x.zarr.zip"), arrays(rows)
    assert dict(group.attrs)["decant.spec"] == rows.spec.to_json()
    names = {name for name, _ in group.arrays()} | {f"offsets/{n}" for n, _ in group["offsets"].arrays()}
    assert names == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(group[name][:], array, strict=True)
        (codec,) = group[name].metadata.to_dict()["codecs"]
        assert codec["name"] == "sharding_indexed"


def test_a_type_that_zarr_lacks_is_stored_as_its_bytes(tmp_path: Path, kit: Any) -> None:
    spec = kit.text_spec(inputs=(Input("when", "<M8[ms]", (None, 2)),), heads=kit.image_spec().heads)
    rows = kit.make_rows(spec, 5)
    (tmp_path / "x.zarr.zip").write_bytes(written(rows))
    stored, when = opened(tmp_path / "x.zarr.zip")["in.when"], rows.inputs["when"].values
    np.testing.assert_array_equal(stored[:].view("<M8[ms]")[..., 0], when, strict=True)
    assert kit.same(found(written(rows), spec), rows)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", ["text", "image"])
def test_arrays_of_many_shards_and_chunks_are_read_here_and_by_zarr(
    tmp_path: Path, kit: Any, kind: str
) -> None:
    rows = kit.make_rows(kit.text_spec() if kind == "text" else kit.image_spec(), 50)
    data = written(rows, 300)
    assert sum("/c/" in name for name in zipfile.ZipFile(io.BytesIO(data)).namelist()) > 50
    assert len(list(container_zarr.read(data, rows.spec))) > 10
    assert kit.same(found(data, rows.spec), rows)
    (tmp_path / "x.zarr.zip").write_bytes(data)
    group = opened(tmp_path / "x.zarr.zip")
    for name, array in arrays(rows).items():
        np.testing.assert_array_equal(group[name][:], array, strict=True)


@pytest.mark.usefixtures("small")
def test_equal_rows_give_equal_bytes_however_they_are_cut_into_shards(kit: Any) -> None:
    rows = kit.make_rows(kit.text_spec(), 40)
    files = set()
    for sizes in ([40], [1] * 40, [13, 27]):
        sink, at = io.BytesIO(), 0
        writer = container_zarr.Writer(sink, rows.spec, 300)
        for size in sizes:
            writer.write(rows.take(np.arange(at, at + size)).to_arrow())
            at += size
        writer.close()
        files.add(sink.getvalue())
    assert len(files) == 1


@pytest.mark.parametrize("kind", ["text", "image"])
def test_what_the_library_writes_by_the_description_is_read(tmp_path: Path, kit: Any, kind: str) -> None:
    zarr = pytest.importorskip("zarr")
    rows = kit.make_rows(kit.text_spec() if kind == "text" else kit.image_spec(), 30)
    store = zarr.storage.ZipStore(tmp_path / "x.zarr.zip", mode="w")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it writes some metadata twice, and zipfile says so
        group = zarr.create_group(
            store, attributes={k.decode(): v.decode() for k, v in rows.spec.schema().metadata.items()}
        )
        group.create_group("offsets")
        for name, array in arrays(rows).items():
            item = array.shape[1:]
            chunk = max(1, 2**18 // (array.itemsize * int(np.prod(item))))
            group.create_array(
                name,
                data=array,
                chunks=(chunk, *item),
                shards=(32 * chunk, *item),
                compressors=zarr.codecs.ZstdCodec(level=3),
                config={"write_empty_chunks": True},
            )
    store.close()
    once = members_of((tmp_path / "x.zarr.zip").read_bytes())
    assert kit.same(found(zip_of(once), rows.spec), rows)


def members_of(data: bytes) -> Members:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zip_of(members: Members, compression: int = zipfile.ZIP_STORED) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return sink.getvalue()


def metadata(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Members], object]:
    def apply(members: Members) -> None:
        data = json.loads(members[f"{name}/zarr.json"])
        change(data)
        members[f"{name}/zarr.json"] = json.dumps(data).encode()

    return apply


def shard(chunks: list[bytes], entries: list[tuple[int, int]] | None = None) -> bytes:
    """One of Zarr's shards with these compressed chunks."""
    starts = np.cumsum([0, *map(len, chunks)]).tolist()
    entries = entries or list(zip(starts, map(len, chunks), strict=False))
    entries += [(2**64 - 1, 2**64 - 1)] * (32 - len(entries))
    index = struct.pack("<64Q", *(value for entry in entries for value in entry))
    google = pytest.importorskip("google_crc32c")
    return b"".join(chunks) + index + struct.pack("<I", google.value(index))


def numbers(values: list[int], dtype: str) -> bytes:
    """A shard of one chunk of these."""
    chunk = np.zeros(2**18 // np.dtype(dtype).itemsize, dtype)
    chunk[: len(values)] = values
    return shard([pa.Codec("zstd").compress(chunk, asbytes=True)])


def codecs(change: Callable[[dict[str, Any]], object]) -> Callable[[Members], object]:
    return metadata("in.tokens", lambda m: change(m["codecs"][0]["configuration"]))


HOSTILE: dict[str, tuple[Callable[[Members], object], str]] = {
    "more items than there are": (metadata("in.tokens", lambda m: m.update(shape=[10**9])), "is missing"),
    "2**80 items": (metadata("in.tokens", lambda m: m.update(shape=[2**80])), "is missing"),
    "one item more": (
        metadata("in.tokens", lambda m: m["shape"].__setitem__(0, m["shape"][0] + 1)),
        "longer",
    ),
    "one item less": (
        metadata("in.tokens", lambda m: m["shape"].__setitem__(0, m["shape"][0] - 1)),
        "shorter",
    ),
    "a negative shape": (metadata("in.tokens", lambda m: m.update(shape=[-1])), "another shape"),
    "a shape that is true": (metadata("in.tokens", lambda m: m.update(shape=[True])), "another shape"),
    "no shape": (metadata("in.tokens", lambda m: m.pop("shape")), "no shape"),
    "another row count": (metadata("view", lambda m: m.update(shape=[2])), "view has not 3 rows"),
    "no rows": (metadata("row", lambda m: m.update(shape=[0])), "does not belong"),
    "another type": (metadata("in.tokens", lambda m: m.update(data_type="uint8")), "another data_type"),
    "objects": (metadata("in.tokens", lambda m: m.update(data_type="object")), "another data_type"),
    "another fill value": (metadata("in.tokens", lambda m: m.update(fill_value=7)), "another fill_value"),
    "another chunk grid": (
        metadata("in.tokens", lambda m: m["chunk_grid"]["configuration"].update(chunk_shape=[2**60])),
        "another chunk_grid",
    ),
    "chunks of 2**60": (codecs(lambda c: c.update(chunk_shape=[2**60])), "another codecs"),
    "a pickle codec": (codecs(lambda c: c["codecs"].append({"name": "numcodecs.pickle"})), "another codecs"),
    "no compression": (codecs(lambda c: c["codecs"].pop()), "another codecs"),
    "big-endian": (
        codecs(lambda c: c["codecs"][0].update(configuration={"endian": "big"})),
        "another codecs",
    ),
    "a storage transformer": (
        metadata("in.tokens", lambda m: m.update(storage_transformers=[{"name": "x"}])),
        "storage transformers",
    ),
    "metadata that is no JSON": (lambda m: m.update({"in.tokens/zarr.json": b"{"}), "no JSON"),
    "metadata that is a list": (lambda m: m.update({"in.tokens/zarr.json": b"[]"}), "no JSON object"),
    "metadata 100,000 deep": (lambda m: m.update({"in.tokens/zarr.json": b"[" * 10**5}), "no JSON"),
    "an array missing": (lambda m: m.pop("in.tokens/zarr.json"), r"in\.tokens/zarr\.json is missing"),
    "a shard missing": (lambda m: m.pop("in.tokens/c/0"), r"in\.tokens/c/0 is missing"),
    "a name that leaves": (lambda m: m.update({"../evil": b"x"}), r"'\.\./evil' does not belong"),
    "an absolute name": (lambda m: m.update({"/etc/passwd": b"x"}), "'/etc/passwd' does not belong"),
    "an array of somebody's": (lambda m: m.update({"x/zarr.json": b"{}"}), "does not belong"),
    "a shard too many": (lambda m: m.update({"in.tokens/c/1": m["in.tokens/c/0"]}), "does not belong"),
    "no chunk in a shard": (lambda m: m.update({"in.tokens/c/0": shard([])}), "chunk 0 of in.tokens is miss"),
    "a chunk beyond its shard": (
        lambda m: m.update({"in.tokens/c/0": shard([b"x"], [(0, 2**40)])}),
        "beyond its shard",
    ),
    "a chunk that starts at 2**63": (
        lambda m: m.update({"in.tokens/c/0": shard([b"x"], [(2**63, 2**63)])}),
        "beyond its shard",
    ),
    "a chunk that is no zstd": (lambda m: m.update({"in.tokens/c/0": shard([b"hello"])}), "does not decode"),
    "a chunk of fewer bytes": (
        lambda m: m.update({"in.tokens/c/0": shard([pa.Codec("zstd").compress(b"ab", asbytes=True)])}),
        "has not the bytes of its shape|does not decode",
    ),
    "a chunk that unfolds to 100 MB": (
        lambda m: m.update({"in.tokens/c/0": shard([pa.Codec("zstd").compress(bytes(10**8), asbytes=True)])}),
        "does not decode",
    ),
    "an index that is broken": (
        lambda m: m.update({"in.tokens/c/0": m["in.tokens/c/0"][:-1] + b"\0\0"}),
        "chunk 0 of in.tokens",
    ),
    "a shard of nothing": (lambda m: m.update({"in.tokens/c/0": b""}), "has no index"),
    "falling offsets": (
        lambda m: m.update({"offsets/in.tokens/c/0": numbers([0, 4, 2, 9], "<i8")}),
        "do not rise",
    ),
    "offsets that wrap": (
        lambda m: m.update({"offsets/in.tokens/c/0": numbers([0, 2**63 - 1, -(2**63), 0], "<i8")}),
        "do not rise",
    ),
    "offsets that begin late": (
        lambda m: m.update({"offsets/in.tokens/c/0": numbers([1, 4, 5, 9], "<i8")}),
        "do not rise",
    ),
    "negative targets": (lambda m: m.update({"targets/c/0": numbers([1, -1, 1], "<i4")}), "negative number"),
    "targets beyond the arrays": (
        lambda m: m.update({"targets/c/0": numbers([2**31 - 1] * 3, "<i4")}),
        "shorter than its rows",
    ),
    "keys that are no UTF-8": (lambda m: m.update({"key/c/0": numbers([255] * 30, "|u1")}), "UTF-8"),
}


@pytest.mark.parametrize(("change", "why"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_group_that_lies_is_refused_by_name(
    kit: Any, change: Callable[[Members], object], why: str
) -> None:
    rows = kit.make_rows(kit.text_spec(TopK(k=3)), 3)
    members = members_of(written(rows))
    assert kit.same(found(zip_of(members), rows.spec), rows)
    change(members)
    with pytest.raises(CorruptShard, match=why):
        found(zip_of(members), rows.spec)


def test_a_zip_bomb_or_a_name_there_twice_is_refused(kit: Any) -> None:
    rows = kit.make_rows(kit.text_spec(), 3)
    data = written(rows)
    bomb = zip_of({**members_of(data), "in.tokens/c/0": bytes(10**7)}, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 10**5
    with pytest.raises(CorruptShard, match="not stored as it is"):
        found(bomb, rows.spec)
    sink = io.BytesIO(data)
    with warnings.catch_warnings(), zipfile.ZipFile(sink, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("row/zarr.json", b"{}")
    with pytest.raises(CorruptShard, match="the same name"):
        found(sink.getvalue(), rows.spec)


@pytest.mark.usefixtures("small")
def test_what_is_written_leaves_memory_before_the_end(kit: Any) -> None:
    rows = kit.make_rows(kit.text_spec(), 200)
    sink = io.BytesIO()
    writer = container_zarr.Writer(sink, rows.spec, 300)
    writer.write(rows.to_arrow())
    chunks = sum(
        i.file_size for i in zipfile.ZipFile(io.BytesIO(written(rows, 300))).infolist() if "/c/" in i.filename
    )
    assert len(sink.getvalue()) > 0.9 * chunks
    writer.close()
    assert sink.getvalue() == written(rows, 300)
