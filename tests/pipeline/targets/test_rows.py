"""Rows to Arrow and back: nothing is lost, and nothing that contradicts itself gets through either way."""

from __future__ import annotations

import io
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.targets import DenseTargets, Head, Input, Ragged, Rows, SparseTargets, Spec
from pipeline.targets.codecs import Dense, Embedding, Sampled, Threshold, TopK, TopP
from pipeline.targets.codecs.base import offsets_of
from pipeline.targets.containers import CONTAINERS
from pipeline.targets.decoded import EmbeddingTargets, TopKTargets, TopPTargets
from pipeline.targets.errors import CorruptShard
from pipeline.targets.spec import Container

SIZE = 11
CODECS = st.sampled_from(
    [
        Dense(),
        Dense("float32"),
        Dense("int8"),
        TopK(k=3),
        TopK(k=20, betas=(0.5, 1.0), dtype="float32", slopes=True),
        TopP(p=0.7, k=5),
        Threshold(0.1),
        Sampled(4),
        Embedding("int8"),
    ]
)
INPUTS = {
    "tokens": Input("tokens", "<u4", (None,)),
    "frames": Input("frames", "<f4", (None, 2)),
    "image": Input("image", "|u1", (2, 3)),
    "score": Input("score", "<i2", ()),
    "wave": Input("wave", "<c8", (2,)),
    "moment": Input("moment", "<M8[ms]", (None,)),  # no type of Zarr's core
}


@st.composite
def specs(draw: st.DrawFn, container: Container = "parquet") -> Spec:
    names = draw(st.lists(st.sampled_from(sorted(INPUTS)), unique=True))
    positions = st.sampled_from(["single", "next_token"])
    heads = [Head(f"head{i}", SIZE, draw(positions), draw(CODECS)) for i in range(draw(st.integers(1, 3)))]
    inputs = tuple(INPUTS[name] for name in names)
    return Spec(inputs, tuple(heads), {"kind": "t"}, {"kind": "v"}, container=container)


@st.composite
def some_rows(draw: st.DrawFn, spec: Spec, most: int = 6) -> Rows:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows = draw(st.integers(0, most))
    lengths = rng.integers(1, 5, rows)
    sequences = any(head.positions == "next_token" for head in spec.heads)
    inputs: dict[str, Any] = {}
    for item in spec.inputs:
        values = rng.integers(0, 100, (int(lengths.sum()) if item.varies else rows, *item.item_shape))
        values = values.astype(item.dtype)
        inputs[item.name] = Ragged(values, offsets_of(lengths)) if item.varies else values
    targets = (lengths - 1) * sequences
    heads = {}
    for head in spec.heads:
        count = int(targets.sum()) if head.positions == "next_token" else rows
        if count:
            logits = rng.normal(size=(count, SIZE)) * 3
            heads[head.name] = head.codec.encode(logits, rng.random((count, head.codec.draws)))
        else:
            heads[head.name] = {f.name: np.zeros((0, *f.shape), f.dtype) for f in head.codec.layout(SIZE)}
    return Rows(
        spec=spec,
        keys=draw(st.lists(st.text(max_size=5), min_size=rows, max_size=rows)),
        row=np.arange(rows),
        view=np.zeros(rows, np.int32),
        views=np.ones(rows, np.int32),
        targets=targets.astype(np.int32),
        inputs=inputs,
        heads=heads,
    )


def assert_same(found: Rows, expected: Rows) -> None:
    assert list(found.keys) == list(expected.keys)
    for name in ("row", "view", "views", "targets"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    for name, array in expected.inputs.items():
        other = found.inputs[name]
        if isinstance(array, Ragged):
            assert isinstance(other, Ragged)
            np.testing.assert_array_equal(other.offsets, array.offsets)
            array, other = array.values, other.values
        np.testing.assert_array_equal(other, array, strict=True)
    for name, encoded in expected.heads.items():
        for field, array in encoded.items():
            np.testing.assert_array_equal(found.heads[name][field], array, strict=True)


@settings(max_examples=80)
@given(st.data())
def test_rows_come_back_from_arrow_as_they_were(data: st.DataObject) -> None:
    rows = data.draw(some_rows(data.draw(specs())))
    batch = rows.to_arrow()
    batch.validate(full=True)
    assert batch.schema.equals(rows.spec.schema(), check_metadata=True)
    assert_same(Rows.from_arrow(rows.spec, batch), rows)


@pytest.mark.parametrize("container", CONTAINERS)
@settings(max_examples=60)
@given(data=st.data())
def test_any_rows_come_back_from_every_container_and_equal_ones_as_equal_bytes(
    container: Container, data: st.DataObject
) -> None:
    rows = data.draw(some_rows(data.draw(specs(container))))
    cuts = sorted({0, len(rows), *data.draw(st.lists(st.integers(0, len(rows)), max_size=3))})
    files = []
    for bounds in ([0, len(rows)], cuts):
        sink = io.BytesIO()
        writer = CONTAINERS[container].writer(sink, rows.spec)
        for start, stop in pairwise(bounds):
            writer.write(rows.take(np.arange(start, stop)).to_arrow())
        writer.close()
        files.append(sink.getvalue())
    assert files[0] == files[1]
    found = [Rows.from_arrow(rows.spec, b) for b in CONTAINERS[container].read(files[0], rows.spec)]
    assert sum(map(len, found)) == len(rows)
    if found:
        assert_same(Rows.concatenate(found), rows)


@settings(max_examples=80)
@given(st.data())
def test_a_slice_of_a_batch_gives_those_rows(data: st.DataObject) -> None:
    rows = data.draw(some_rows(data.draw(specs())))
    start = data.draw(st.integers(0, len(rows)))
    count = data.draw(st.integers(0, len(rows) - start))
    found = Rows.from_arrow(rows.spec, rows.to_arrow().slice(start, count))
    assert_same(found, rows.take(np.arange(start, start + count)))
    assert_same(Rows.from_arrow(rows.spec, found.to_arrow()), found)


@settings(max_examples=50)
@given(st.data())
def test_taking_from_a_concatenation_gives_its_parts(data: st.DataObject) -> None:
    spec = data.draw(specs())
    parts = data.draw(st.lists(some_rows(spec, most=3), min_size=1, max_size=4))
    whole = Rows.concatenate(parts)
    assert len(whole) == sum(map(len, parts))
    first = 0
    for part in parts:
        assert_same(whole.take(np.arange(first, first + len(part))), part)
        first += len(part)


@settings(max_examples=40)
@given(st.data())
def test_decoding_rows_gives_one_target_for_each_that_they_count(data: st.DataObject) -> None:
    rows = data.draw(some_rows(data.draw(specs())))
    for head in rows.spec.heads:
        decoded = rows.decode(head.name)
        match decoded:
            case SparseTargets() | TopPTargets():
                found = len(decoded.offsets) - 1
            case DenseTargets():
                found = len(decoded.logits)
            case TopKTargets():
                found = len(decoded.ids)
            case EmbeddingTargets():
                found = len(decoded.vectors)
        assert found == int(rows.counts(head).sum())


TEXT = Spec(
    (INPUTS["tokens"], INPUTS["image"]),
    (Head("logits", SIZE, "next_token", Threshold(0.1)), Head("topic", SIZE, "single", Dense())),
    {"kind": "t"},
    {"kind": "v"},
)


def text_rows() -> Rows:
    rng = np.random.default_rng(3)
    lengths = np.array([3, 1, 6])
    count = int((lengths - 1).sum())
    return Rows(
        spec=TEXT,
        keys=["a", "b", "c"],
        row=np.arange(3),
        view=np.zeros(3, np.int32),
        views=np.ones(3, np.int32),
        targets=(lengths - 1).astype(np.int32),
        inputs={
            "tokens": Ragged(np.arange(10, dtype="<u4"), offsets_of(lengths)),
            "image": np.zeros((3, 2, 3), np.uint8),
        },
        heads={
            "logits": Threshold(0.1).encode(rng.normal(size=(count, SIZE)), rng.random((count, 2))),
            "topic": Dense().encode(rng.normal(size=(3, SIZE)), rng.random((3, 0))),
        },
    )


def changed(batch: pa.RecordBatch, name: str, array: pa.Array) -> pa.RecordBatch:
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    columns[name] = array
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=batch.schema)


def blobs(*lengths: int) -> pa.Array:
    return pa.array([b"\1" * length for length in lengths], pa.binary())


HOSTILE = {
    "negative targets": ("targets", pa.array([2, -1, 5], pa.int32())),
    "targets that are not tokens less one": ("targets", pa.array([2, 1, 5], pa.int32())),
    "huge targets": ("targets", pa.array([2, 0, 2**31 - 1], pa.int32())),
    "a null count": ("targets", pa.array([2, None, 5], pa.int32())),
    "a null key": ("key", pa.array(["a", None, "c"])),
    "a key that is no UTF-8": ("key", pa.array([b"a", b"\xff", b"c"]).view(pa.string())),
    "a negative ordinal": ("row", pa.array([0, -1, 2], pa.int64())),
    "a view beyond the views": ("view", pa.array([0, 1, 0], pa.int32())),
    "a negative view": ("view", pa.array([0, -1, 0], pa.int32())),
    "no views": ("views", pa.array([1, 0, 1], pa.int32())),
    "half a token": ("in.tokens", blobs(12, 4, 23)),
    "a token too many": ("in.tokens", blobs(12, 4, 28)),
    "a null input": ("in.tokens", pa.array([b"\1" * 12, None, b"\1" * 24])),
    "a short image": ("in.image", blobs(6, 0, 6)),
    "two images in a row": ("in.image", blobs(6, 12, 6)),
    "a target missing": ("logits.head_count", blobs(2, 0, 4)),
    "counts larger than their entries": ("logits.head_count", pa.array([b"\xff\xff", b"", b"\xff" * 5])),
    "counts smaller than their entries": ("logits.count", pa.array([b"\0\0", b"", b"\0" * 5])),
    "codes of another length": ("logits.head_codes", blobs(2, 0, 2)),
    "bits that no code asks for": ("logits.tail_bits", blobs(300, 0, 2)),
    "codes beyond the last": ("logits.tail_codes", blobs(3, 0, 2)),
    "a dense target missing": ("topic.logits", blobs(22, 0, 22)),
    "two dense targets in a row": ("topic.logits", blobs(22, 44, 22)),
}


@pytest.mark.parametrize(("name", "array"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_batch_that_contradicts_itself_is_a_corrupt_shard(name: str, array: pa.Array) -> None:
    batch = changed(text_rows().to_arrow(), name, array)
    with pytest.raises(CorruptShard):
        Rows.from_arrow(TEXT, batch)


@pytest.mark.parametrize(
    ("offsets", "size"),
    [((0, 6, 12, 18), 17), ((0, 6, 12, 18), 0), ((0, 12, 6, 18), 40), ((-6, 0, 6, 12), 40)],
    ids=["data cut off", "no data at all", "falling offsets", "negative offsets"],
)
def test_offsets_that_lie_are_a_corrupt_shard(offsets: tuple[int, ...], size: int) -> None:
    bounds = np.zeros(4, np.int32)
    buffers = [None, pa.py_buffer(bounds), pa.py_buffer(b"\0" * size)]
    batch = changed(text_rows().to_arrow(), "in.image", pa.Array.from_buffers(pa.binary(), 3, buffers))
    bounds[:] = offsets  # Arrow looks at them only when the column is made
    with pytest.raises(CorruptShard, match=r"in\.image"):
        Rows.from_arrow(TEXT, batch)


def test_a_batch_of_other_columns_is_a_corrupt_shard() -> None:
    batch = text_rows().to_arrow()
    for other in (batch.drop_columns(["topic.logits"]), batch.select(batch.schema.names[::-1])):
        with pytest.raises(CorruptShard, match="columns"):
            Rows.from_arrow(TEXT, other)


@settings(max_examples=150)
@given(st.data())
def test_random_bytes_in_a_column_are_refused_or_decode_but_never_crash(data: st.DataObject) -> None:
    batch = text_rows().to_arrow()
    name = data.draw(st.sampled_from([n for n in batch.schema.names if "." in n]))
    sizes = [len(value) for value in batch.column(name).to_pylist()]
    cells = [data.draw(st.binary(max_size=60) | st.binary(min_size=n, max_size=n)) for n in sizes]
    try:
        rows = Rows.from_arrow(TEXT, changed(batch, name, pa.array(cells, pa.binary())))
    except CorruptShard:
        return
    assert_same(Rows.from_arrow(TEXT, rows.to_arrow()), rows)


def replaced(**fields: Any) -> Rows:
    rows = text_rows()
    return Rows(**{**{name: getattr(rows, name) for name in vars(rows)}, **fields})


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"targets": np.array([2, 1, 5], np.int32)}, "L - 1"),
        ({"targets": np.array([2, 0], np.int32)}, "targets has shape"),
        ({"row": np.array([0, -1, 2])}, "ordinal"),
        ({"view": np.array([0, 1, 0], np.int32)}, "view"),
        ({"inputs": {**text_rows().inputs, "image": np.zeros((3, 2, 3), np.int16)}}, "in.image has dtype"),
        ({"inputs": {**text_rows().inputs, "image": np.zeros((3, 3, 2), np.uint8)}}, "in.image has shape"),
        ({"inputs": {**text_rows().inputs, "image": np.zeros((2, 2, 3), np.uint8)}}, "in.image has 2 items"),
        ({"inputs": {**text_rows().inputs, "image": text_rows().inputs["tokens"]}}, "in.image is Ragged"),
        (
            {"heads": {**text_rows().heads, "topic": {"logits": np.zeros((2, SIZE), "<f2")}}},
            "topic.logits has 2",
        ),
        ({"heads": {**text_rows().heads, "topic": {"logits": np.zeros((3, SIZE), "<f4")}}}, "has <f4 items"),
    ],
)
def test_arrays_that_contradict_the_spec_or_each_other_are_not_written(
    fields: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        replaced(**fields).to_arrow()


def test_ragged_offsets_must_cover_the_values() -> None:
    for offsets in ([0, 2], [1, 3], [0, 2, 1, 3], []):
        with pytest.raises(ValueError, match="offsets"):
            Ragged(np.zeros(3), np.array(offsets, dtype=np.int64))
