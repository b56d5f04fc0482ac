"""DistillKit's captures are read as they were written, whatever their configuration."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.interchange.distillkit import compression_of
from pipeline.interchange.distillkit_forms import Legacy, Polynomial
from tests.pipeline.interchange.distillkit_format import (
    configuration,
    packed,
    position,
    small_probabilities,
    small_row,
    words,
    write,
)

DTYPES = st.sampled_from(["float16", "bfloat16", "float32", "float64"])


@st.composite
def captures(draw: st.DrawFn) -> tuple[dict[str, Any], list[dict[str, Any]], list[Any]]:
    """A configuration, rows encoded with it, and for each row its tokens and expected distributions."""
    size = draw(st.sampled_from([2, 64, 1000, 2**16, 2**16 + 1, 131_073, 151_936]))
    k = draw(st.integers(1, min(size, 12)))
    exact_k = draw(st.integers(0, k))
    bins, left = [], k - exact_k
    while left and draw(st.booleans()):
        count = draw(st.integers(1, left))
        left -= count
        bits = draw(st.integers(1, 20))
        bins.append({"scale_dtype": draw(DTYPES), "element_bits": bits, "num_elements": count})
    config = {
        "d": size,
        "k": k,
        "exact_k": exact_k,
        "exact_dtype": draw(DTYPES),
        "polynomial_terms": draw(st.sampled_from([[0], [0, 1, "sqrt"], [0, 1, 2, 3, 4, "sqrt"], ["exp", 0]])),
        "term_dtype": draw(st.sampled_from(["float32", "float64"])),
        "residual_bins": bins,
        "delta_encoding": draw(st.booleans()),
        "normalize_t": draw(st.booleans()),
    }
    rows, expected = [], []
    for _ in range(draw(st.integers(1, 2))):
        length = draw(st.integers(1, 4))
        targets = length - draw(st.integers(0, 1))
        tokens = draw(st.lists(st.integers(0, size - 1), min_size=length, max_size=length))
        data, ids, wanted = [], [], []
        for _ in range(targets):
            chosen = draw(st.lists(st.integers(0, size - 1), min_size=k, max_size=k, unique=True))
            exact = [draw(st.floats(-9, -3)) for _ in range(exact_k)]
            terms = [draw(st.floats(-0.5, 0)) if name else -6.0 for name in config["polynomial_terms"]]
            quantised = [
                (
                    1e-7,
                    [
                        draw(st.integers(0, 2 ** item["element_bits"] - 1))
                        for _ in range(item["num_elements"])
                    ],
                )
                for item in bins
            ]
            raw, values = position(config, exact, terms, quantised)
            data.append(list(raw))
            ids.append(list(packed(chosen, math.ceil(math.log2(size)))))
            wanted.append(dict(zip(chosen, map(math.exp, values), strict=True)))
        rows.append({"input_ids": tokens, "compressed_logprobs": data, "bytepacked_indices": ids})
        expected.append((tokens, wanted[: length - 1]))
    return config, rows, expected


@pytest.mark.slow
@settings(max_examples=60)
@given(captures())
def test_every_configuration_is_read_as_it_was_written(import_anywhere: Any, capture: Any) -> None:
    config, rows, expected = capture
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder, "data_0.parquet"), rows)
        found = import_anywhere(
            "distillkit",
            folder,
            Path(folder, "store"),
            compression=Polynomial.model_validate(config),
        )
        assert not found.reasons
        for number_, (tokens, wanted) in enumerate(expected):
            row = found.rows[f"data_0.parquet#{number_}"]
            assert row.inputs["tokens"].tolist() == tokens
            assert len(row.ids) == len(tokens) - 1
            for target, probabilities in enumerate(wanted):
                stored = row.probabilities(target)
                for name, p in probabilities.items():
                    assert stored.get(name, 0) == pytest.approx(p, rel=1e-4, abs=1e-30)
                missing = 1 - sum(probabilities.values()) if config["k"] < config["d"] else 0
                assert math.exp(row.tail[target]) == pytest.approx(missing, abs=1e-5)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("size", "sqrt", "inverse"), [(50_257, True, False), (129_280, False, True)])
def test_the_legacy_form_is_read_as_it_was_written(
    tmp_path: Path, import_into: Any, size: int, sqrt: bool, inverse: bool, signed: bool
) -> None:
    # With 16 bits an id, four fill a word to its sign, and whoever writes int64 writes negative numbers.
    config = {
        "vocab_size": size,
        "k": 9,
        "exact_k": 3,
        "polynomial_degree": 2,
        "with_sqrt_term": sqrt,
        "invert_polynomial": inverse,
    }
    bits = math.ceil(math.log2(size))
    ids = [size - 1 - 7 * i for i in range(9)]
    exact, coefficients = [-1.0, -1.5, -2.0], [-8.0, 0.25 if inverse else -0.25, 0.125] + [0.5] * sqrt
    powers = [-i if inverse else i for i in range(3)]
    tail = [
        sum(c * rank**power for c, power in zip(coefficients, powers, strict=False))
        + (coefficients[3] * math.sqrt(rank) if sqrt else 0)
        for rank in range(1, 7)
    ]
    packed_ids = words(ids, bits)
    if signed:
        packed_ids = [value - 2**64 if value >= 2**63 else value for value in packed_ids]
    kind = pa.int64() if signed else pa.uint64()
    table = {
        "input_ids": pa.array([[5, 6, 7]], pa.list_(pa.uint64())),
        "packed_indices": pa.array([[packed_ids] * 3], pa.list_(pa.list_(kind))),
        "exact_values": pa.array([[exact] * 3], pa.list_(pa.list_(pa.float32()))),
        "coeffs": pa.array([[coefficients] * 3], pa.list_(pa.list_(pa.float32()))),
    }
    (tmp_path / "source").mkdir()
    pq.write_table(pa.table(table), tmp_path / "source/data_0.parquet")
    found = import_into("distillkit", tmp_path / "source", compression=Legacy.model_validate(config))
    row = found.rows["data_0.parquet#0"]
    for target in range(2):
        stored = row.probabilities(target)
        for name, value in zip(ids, [*exact, *tail], strict=True):
            assert stored[name] == pytest.approx(math.exp(value), rel=1e-5)


def test_ids_take_the_bits_that_distillkit_counts_in_float32() -> None:
    from pipeline.interchange.distillkit_forms import _id_bits

    assert [_id_bits(size) for size in (2, 1000, 2**17, 2**17 + 1, 151_936)] == [1, 10, 17, 18, 18]
    assert _id_bits(2**21 + 1) == 21
    assert np.float32(2**21 + 1) == 2**21 + 1


def test_packed_rows_are_cut_into_their_documents(tmp_path: Path, import_into: Any) -> None:
    # Targets as many as tokens; of each document the last one tells of no token that is there.
    (tmp_path / "source").mkdir()
    packed_row = small_row([1, 2, 3, 4, 5, 9], 6, attention_mask=[1, 1, 2, 2, 2, 0])
    write(tmp_path / "source/data_0.parquet", [packed_row, small_row([7, 8], 2, 6, attention_mask=[1, 1])])
    found = import_into("distillkit", tmp_path / "source", compression=configuration())
    assert {key: row.inputs["tokens"].tolist() for key, row in found.rows.items()} == {
        "data_0.parquet#0.0": [1, 2],
        "data_0.parquet#0.1": [3, 4, 5],
        "data_0.parquet#1": [7, 8],
    }
    second = found.rows["data_0.parquet#0.1"]
    for target, original in enumerate((2, 3)):
        assert second.probabilities(target) == pytest.approx(small_probabilities(original), rel=1e-5)
    assert found.verified.records == 3
    assert found.verified.targets == 4


def test_the_spec_says_where_the_targets_are_from_and_that_the_tail_was_not_measured(
    tmp_path: Path, import_into: Any
) -> None:
    (tmp_path / "source").mkdir()
    write(tmp_path / "source/data_0.parquet", [small_row([1, 2, 3], 2)])
    spec = import_into("distillkit", tmp_path / "source", compression=configuration()).store.spec
    assert spec.teacher["kind"] == "imported"
    assert spec.teacher["format"] == "distillkit"
    assert spec.teacher["tail"] == "from_sum"
    assert spec.teacher["compression"]["normalize_t"] is False
    assert len(spec.teacher["fingerprint"]) == 64
    assert spec.head("logits").codec.to_json()["betas"] == (1.0,)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("d: 9\nk: 2\nexact_k: 2\nresidual_bins: []", Polynomial),
        ("logprob_compressor: {d: 9, k: 2, exact_k: 2, residual_bins: []}", Polynomial),
        ('{"vocab_size": 9, "k": 2, "exact_k": 1, "polynomial_degree": 3}', Legacy),
        (
            "teacher: {kind: dataset, legacy_logit_compression: "
            "{vocab_size: 9, k: 2, exact_k: 1, polynomial_degree: 3}}\nmodel: x",
            Legacy,
        ),
    ],
)
def test_the_config_is_found_in_a_file_of_its_own_and_in_a_runs(text: str, kind: type) -> None:
    assert isinstance(compression_of(text, "c.yaml"), kind)
