"""What every codec promises, whichever it is."""

import json
import warnings
from typing import Any, Literal

import numpy as np
import pydantic
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.job import AnyCodec
from pipeline.targets.codecs import CODECS as KINDS
from pipeline.targets.codecs import (
    Codec,
    Dense,
    Embedding,
    NonFiniteLogits,
    Sampled,
    Threshold,
    TopK,
    TopP,
    base,
    codec_from_json,
)
from pipeline.targets.ragged import Ragged

CODECS = [
    Dense(),
    Dense(dtype="float32"),
    Dense(dtype="bfloat16"),
    Dense(dtype="int8"),
    TopK(k=1),
    TopK(k=5, betas=(0.25, 0.5, 1.0, 2.0), dtype="float32"),
    TopK(k=1000, betas=(0.5,)),
    TopK(k=3, betas=(0.05, 1.0, 2.0), slopes=True),
    TopP(),
    TopP(p=0.5, k=3, betas=(0.25, 1.0), slopes=True, dtype="float32"),
    TopP(p=0.999, k=1000),
    Threshold(),
    Threshold(threshold=0.5),
    Threshold(threshold=1 / 4096),
    Sampled(),
    Sampled(draws=300),
    Embedding(),
    Embedding(dtype="float32"),
    Embedding(dtype="bfloat16"),
    Embedding(dtype="int8"),
]
every_codec = pytest.mark.parametrize("codec", CODECS, ids=repr)
IMPLEMENTATIONS = ["numpy", "torch"]


def encode(codec: Codec, implementation: str, logits: base.Array, uniforms: base.Array) -> base.Encoded:
    """uniforms: as many a target as the codec takes, or two from which the others follow."""
    logits = fitting(codec, logits)
    if uniforms.shape[1] != codec.draws:
        pairs, uniforms = uniforms, (uniforms[:, :1] + 0.618 * np.arange(codec.draws)) % 1
        uniforms[:, :2] = pairs[:, : codec.draws]
    if implementation == "torch":
        return codec.encode_torch(torch.from_numpy(logits.copy()), uniforms)
    return codec.encode(logits, uniforms)


def fitting(codec: Codec, logits: base.Array) -> base.Array:
    """No class can be excluded from an embedding: a small number instead."""
    if codec.of == "logits":
        return logits
    return np.where(np.isneginf(logits), logits.dtype.type(-3), logits)


@st.composite
def logits_and_uniforms(draw: st.DrawFn) -> tuple[base.Array, base.Array]:
    """Up to 5 targets of up to 100 classes: ties, peaks, subnormal tails and excluded classes among them."""
    shape = draw(st.tuples(st.integers(0, 5), st.integers(1, 100)))
    values = st.one_of(
        st.floats(-30, 30, width=32), st.integers(-2, 2).map(float), st.sampled_from([-720.0, -90.0, 40.0])
    )
    logits = draw(hnp.arrays(np.float32, shape, elements=values))
    excluded = draw(hnp.arrays(np.bool_, shape, elements=st.booleans(), fill=st.just(False)))
    excluded[:, draw(st.integers(0, shape[1] - 1))] = False
    logits[excluded] = -np.inf
    ends = st.floats(0, 1, exclude_max=True) | st.sampled_from([0.0, np.nextafter(1.0, 0.0)])
    return logits, draw(hnp.arrays(np.float64, (shape[0], 2), elements=ends))


@every_codec
def test_json_rebuilds_the_codec(codec: Codec) -> None:
    assert codec_from_json(json.loads(json.dumps(codec.to_json()))) == codec


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({"kind": "treshold"}, "threshold"),
        ({"kind": "threshold", "treshold": 0.1}, '"threshold"'),
        ({"kind": "threshold", "threshold": 0.6}, "threshold: "),
        ({"kind": "threshold", "threshold": 1 / 4097}, "threshold: "),
        ({"kind": "threshold", "threshold": float("nan")}, "threshold: "),
        ({"kind": "topk", "k": 0}, "k: "),
        ({"kind": "topk", "k": "5"}, "k: "),
        ({"kind": "topk", "betas": []}, "betas: "),
        ({"kind": "topk", "betas": [1.0, 0.5]}, "betas: "),
        ({"kind": "topk", "betas": [0.5, 0.5]}, "betas: "),
        ({"kind": "topk", "betas": [float("inf")]}, "betas: "),
        ({"kind": "topk", "dtype": "int8"}, "dtype: "),
        ({"kind": "topk", "slopes": 1}, "slopes: "),
        ({"kind": "topk", "slopes": True}, "slopes: .* two or more"),
        ({"kind": "topp", "p": 1.0}, "p: "),
        ({"kind": "topp", "p": 0}, "p: "),
        ({"kind": "topp", "p": float("nan")}, "p: "),
        ({"kind": "topp", "k": 0}, "k: "),
        ({"kind": "topp", "dtype": "bfloat16"}, "dtype: "),
        ({"kind": "sampled", "draws": 0}, "draws: "),
        ({"kind": "sampled", "draws": 65536}, "draws: "),
        ({"kind": "sampled", "draws": 2.0}, "draws: "),
        ({"kind": "dense", "dtype": "float8"}, "dtype: "),
        ({"kind": "embedding", "dtype": "float8"}, "dtype: "),
        ({"kind": "codebooks", "size": 4, "count": 2}, '"words"'),
    ],
)
def test_a_wrong_configuration_is_refused_by_the_name_of_the_key(data: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        codec_from_json(data)


def test_a_job_file_reaches_the_codec_by_its_kind_and_unknown_keys_are_refused() -> None:
    any_codec = pydantic.TypeAdapter[Codec](AnyCodec)
    assert any_codec.validate_python({"kind": "topk", "k": 3, "betas": [1, 2]}) == TopK(3, (1.0, 2.0))
    with pytest.raises(pydantic.ValidationError, match=r"dense\.k"):
        any_codec.validate_python({"kind": "dense", "k": 3})
    with pytest.raises(pydantic.ValidationError, match="threshold: must be between"):
        any_codec.validate_python({"kind": "threshold", "threshold": 2.0})
    definitions = any_codec.json_schema()["$defs"]
    assert set(definitions) == {codec.__name__ for codec in KINDS.values()}
    for definition in definitions.values():
        assert all("description" in schema for schema in definition["properties"].values())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@settings(max_examples=25)
@given(drawn=logits_and_uniforms())
def test_the_stored_arrays_are_those_that_the_layout_declares(
    implementation: str, drawn: tuple[base.Array, base.Array]
) -> None:
    logits, uniforms = drawn
    count, size = logits.shape
    for codec in CODECS:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            encoded = encode(codec, implementation, logits, uniforms)
            codec.decode(encoded, size)
            statistics = codec.statistics(encoded, size)
        layout = codec.layout(size)
        assert list(encoded) == [field.name for field in layout]
        for field in layout:
            items = count if field.counted_by is None else int(encoded[field.counted_by].sum(dtype=np.int64))
            assert encoded[field.name].shape == (items, *field.shape)
            assert encoded[field.name].dtype == np.dtype(field.dtype)
        named = {"entries", "payload_bytes"} | ({"captured_mass"} if codec.of == "logits" else set())
        assert set(statistics) == named
        assert statistics["payload_bytes"] * count == pytest.approx(sum(a.nbytes for a in encoded.values()))
        assert 0 <= statistics.get("captured_mass", 0) < 1.01


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@settings(max_examples=20)
@given(drawn=logits_and_uniforms(), cut=st.integers(0, 5))
def test_a_target_is_encoded_alike_in_any_company(
    implementation: str, drawn: tuple[base.Array, base.Array], cut: int
) -> None:
    logits, uniforms = drawn
    reverse = np.arange(len(logits))[::-1]
    for codec in CODECS:
        layout = codec.layout(logits.shape[1])
        whole = encode(codec, implementation, logits, uniforms)
        parts = [
            encode(codec, implementation, logits[s], uniforms[s]) for s in (slice(cut), slice(cut, None))
        ]
        joined = base.concatenate(parts, layout)
        turned = encode(codec, implementation, logits[reverse], uniforms[reverse])
        for name, array in whole.items():
            assert array.tobytes() == joined[name].tobytes()
            assert array.tobytes() == base.take(turned, layout, reverse)[name].tobytes()


@every_codec
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_rows_without_a_distribution_are_refused_and_named(codec: Codec, implementation: str) -> None:
    logits = np.random.default_rng(0).normal(size=(6, 70)).astype(np.float32)
    logits[:, 7] = -np.inf
    logits[1, 69] = np.nan
    logits[3, 0] = np.inf
    logits[4] = -np.inf
    with pytest.raises(NonFiniteLogits) as refused:
        encode(codec, implementation, logits, np.full((6, codec.draws), 0.5))
    assert refused.value.rows.tolist() == [False, True, False, True, codec.of == "logits", False]


@pytest.mark.parametrize("codec", [TopK(), TopP(), Threshold(), Sampled(3)], ids=repr)
def test_bad_rows_are_all_named_when_the_logits_are_worked_on_in_several_chunks(codec: Codec) -> None:
    logits = torch.randn(8, 300_000, generator=torch.Generator().manual_seed(0))
    logits[[0, 7], 299_999] = torch.nan
    with pytest.raises(NonFiniteLogits) as refused:
        codec.encode_torch(logits, np.full((8, codec.draws), 0.5))
    assert refused.value.rows.nonzero()[0].tolist() == [0, 7]


@every_codec
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_logits_are_taken_at_their_exact_value(
    codec: Codec, dtype: Literal["bfloat16", "float16"]
) -> None:
    logits = torch.randn(20, 300, generator=torch.Generator().manual_seed(1)).mul(4).to(getattr(torch, dtype))
    logits[:, 5] = -torch.inf if codec.of == "logits" else -3
    uniforms = np.random.default_rng(1).random((20, codec.draws))
    half, full = codec.encode_torch(logits, uniforms), codec.encode_torch(logits.float(), uniforms)
    assert all(half[name].tobytes() == full[name].tobytes() for name in full)


@every_codec
def test_logits_that_are_a_strided_view_and_want_a_gradient_are_encoded_too(codec: Codec) -> None:
    logits = torch.randn(300, 40, generator=torch.Generator().manual_seed(2)).T.requires_grad_()
    uniforms = np.random.default_rng(2).random((40, codec.draws))
    strided = codec.encode_torch(logits, uniforms)
    dense = codec.encode_torch(logits.detach().contiguous(), uniforms)
    assert all(strided[name].tobytes() == dense[name].tobytes() for name in dense)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@settings(max_examples=25)
@given(drawn=logits_and_uniforms(), cuts=st.lists(st.integers(0, 5), max_size=4))
def test_what_a_shard_stores_of_rows_is_what_they_hold(
    implementation: str, drawn: tuple[base.Array, base.Array], cuts: list[int]
) -> None:
    logits, uniforms = drawn
    count, size = logits.shape
    counts = np.diff(np.array([0, *sorted(min(cut, count) for cut in cuts), count]))
    for codec in CODECS:
        encoded = encode(codec, implementation, logits, uniforms)
        packed = codec.pack(encoded, counts, size)
        columns = codec.columns(size)
        assert list(packed) == [column.name for column in columns]
        for column in columns:
            assert packed[column.name].values.dtype == np.dtype(column.dtype)
            assert packed[column.name].values.shape[1:] == column.shape
            assert len(packed[column.name].lengths) == len(counts)
        again = codec.unpack(packed, counts, size)
        assert list(again) == list(encoded)
        for name, array in encoded.items():
            assert again[name].dtype == array.dtype
            assert again[name].tobytes() == array.tobytes()


@every_codec
def test_columns_that_contradict_the_counts_are_refused_by_name(codec: Codec) -> None:
    rng = np.random.default_rng(0)
    encoded = codec.encode(rng.normal(size=(6, 40)).astype(np.float32), rng.random((6, codec.draws)))
    packed = codec.pack(encoded, np.array([4, 2]), 40)
    for name, stored in packed.items():
        if not len(stored.values):
            continue
        shorter = Ragged(stored.values[:-1], np.minimum(stored.offsets, len(stored.values) - 1))
        with pytest.raises(ValueError, match=name.partition("_")[0]):
            codec.unpack({**packed, name: shorter}, np.array([4, 2]), 40)


@pytest.mark.parametrize(
    "codec", [TopP(p=0.99, k=7), Sampled(40), TopK(k=9, betas=(0.5, 1.0), slopes=True)], ids=repr
)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_ids_of_a_large_vocabulary_are_kept_whole(codec: Codec, implementation: str) -> None:
    """Beyond 2**16, where a two-byte id wraps, and 2**17, where a 17-bit one does."""
    size, high = 300_000, np.array([65_536, 131_072, 262_144, 299_999])
    logits = np.full((2, size), -20.0, dtype=np.float32)
    logits[:, high] = [[3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0]]
    decoded: Any = codec.decode(encode(codec, implementation, logits, np.full((2, 2), 0.3)), size)
    assert set(high) <= set(decoded.ids.ravel())
    assert base.id_dtype(2**32) == "<u4"
    (ids,) = (field for field in codec.layout(2**32) if field.name == "ids")
    assert ids.dtype == "<u4"


def test_a_codecs_json_of_the_first_release_is_what_it_was() -> None:
    """A store's fingerprint is of this text."""
    first = {
        Dense(): '{"kind": "dense", "dtype": "float16"}',
        TopK(): '{"kind": "topk", "k": 64, "betas": [1.0], "dtype": "float16"}',
    }
    for codec, text in first.items():
        assert json.loads(text) == json.loads(json.dumps(codec.to_json()))
        assert codec_from_json(json.loads(text)) == codec
