"""DistillKit's captures are read right, whatever their configuration, and never with a wrong one.

What they are written with knows the format's description and nothing of the importer.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distillkit_writer import packed, position, words, write
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.interchange.distillkit import Legacy, Polynomial, compression_of
from pipeline.targets.errors import ConfigError, CorpusUnreadable, SpecMismatch

SMALL = {
    "d": 1000,
    "k": 6,
    "exact_k": 2,
    "exact_dtype": "float32",
    "polynomial_terms": [0, 1, "sqrt"],
    "term_dtype": "float32",
    "residual_bins": [],
    "delta_encoding": False,
}
"""Four of six log-probabilities from a polynomial."""

COEFFICIENTS = [-4.0, -0.25, -0.5]
"""Of the terms of SMALL."""


def small_row(tokens: list[int], targets: int, first: int = 0, **more: Any) -> dict[str, Any]:
    """A row of SMALL whose target i keeps the classes 6 (first + i) to 6 (first + i) + 5."""
    data, _ = position(SMALL, [-0.5, -1.5], COEFFICIENTS)
    ids = [[6 * (first + i) + j for j in range(6)] for i in range(targets)]
    return {
        "input_ids": tokens,
        "compressed_logprobs": [list(data)] * targets,
        "bytepacked_indices": [list(packed(item, 10)) for item in ids],
        **more,
    }


def small_probabilities(target: int) -> dict[int, float]:
    values = position(SMALL, [-0.5, -1.5], COEFFICIENTS)[1]
    return {6 * target + j: math.exp(value) for j, value in enumerate(values)}


def configuration(**changes: Any) -> Polynomial:
    return Polynomial.model_validate({**SMALL, **changes})


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


@settings(max_examples=60, deadline=None)
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


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"k": 7}, "compressed_logprobs has 20 items|bytepacked_indices has 8 items"),
        ({"exact_k": 3}, "compressed_logprobs has 20 items a position and the config asks for 24"),
        (
            {"exact_dtype": "bfloat16"},
            "compressed_logprobs has 20 items a position and the config asks for 16",
        ),
        ({"d": 5000}, "bytepacked_indices has 8 items a position and the config asks for 10"),
    ],
)
def test_a_configuration_that_is_not_the_datas_is_refused_before_there_is_a_store(
    tmp_path: Path, import_into: Any, change: dict[str, Any], said: str
) -> None:
    (tmp_path / "source").mkdir()
    write(tmp_path / "source/data_0.parquet", [small_row([1, 2, 3], 2)])
    with pytest.raises(ConfigError, match=said):
        import_into("distillkit", tmp_path / "source", compression=configuration(**change))
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("normalized", "exact", "coefficients"),
    [
        (True, [-0.5, -1.5], [-4.0, -3.0, 2.0]),  # over ranks up to 3 it rises
        (True, [-0.5, -1.5], [-4.0, -500.0, 400.0]),  # and here beyond what exp can say
        (False, [-1.15, -1.35], [-1.6, -1.0, 0.0]),  # over [0, 1] it hardly falls
    ],
)
def test_the_wrong_mapping_of_ranks_shows_as_numbers_that_are_no_distribution(
    tmp_path: Path, import_into: Any, normalized: bool, exact: list[float], coefficients: list[float]
) -> None:
    # The same bytes whichever way t is mapped.
    (tmp_path / "source").mkdir()
    config = {**SMALL, "normalize_t": normalized, "polynomial_terms": [0, 1, 2]}
    data, _ = position(config, exact, coefficients)
    row = {**small_row([1, 2, 3], 2), "compressed_logprobs": [list(data)] * 2}
    write(tmp_path / "source/data_0.parquet", [row])
    right = configuration(normalize_t=normalized, polynomial_terms=[0, 1, 2])
    assert not import_into("distillkit", tmp_path / "source", compression=right).reasons
    wrong = configuration(normalize_t=not normalized, polynomial_terms=[0, 1, 2])
    with pytest.raises(ConfigError, match=r"data_0\.parquet#0: .* which is more than one"):
        import_into("distillkit", tmp_path / "source", compression=wrong, store=tmp_path / "wrong")


def test_broken_rows_go_to_quarantine_and_the_rest_is_imported(tmp_path: Path, import_into: Any) -> None:
    nan = small_row([1, 2], 1)
    nan["compressed_logprobs"] = [list(position(SMALL, [float("nan"), -1.0], COEFFICIENTS)[0])]
    outside = small_row([1, 2], 1)
    outside["bytepacked_indices"] = [list(packed([1, 2, 3, 4, 5, 1001], 10))]
    (tmp_path / "source").mkdir()
    rows = [
        small_row([1, 2, 3], 2),
        small_row([1, 2, 3], 1),
        small_row([1, 1000], 1),
        nan,
        outside,
        small_row([], 0),
        {**small_row([1, 2], 1), "bytepacked_indices": None},
        {**small_row([1, 2], 1), "bytepacked_indices": [None]},
        small_row([4], 0),
    ]
    write(tmp_path / "source/data_0.parquet", rows)
    found = import_into("distillkit", tmp_path / "source", compression=configuration())
    assert set(found.rows) == {"data_0.parquet#0", "data_0.parquet#8"}
    said = {int(key.rpartition("#")[2]): reason for key, reason in found.reasons.items()}
    assert "3 tokens and 1 targets" in said[1][1]
    assert "token 1000 is not one of 1000" in said[2][1]
    assert said[3][0] == "non_finite"
    assert "class 1001 is not one of 1000" in said[4][1]
    assert said[5][0] == "empty"
    assert "bytepacked_indices" in said[6][1]
    assert "bytepacked_indices" in said[7][1]
    assert found.verified.records == 9


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.list_(pa.int64()), pa.list_(pa.list_(pa.string())), pa.int8()]
)
def test_a_column_of_another_type_is_refused_by_name(
    tmp_path: Path, import_into: Any, kind: pa.DataType
) -> None:
    (tmp_path / "source").mkdir()
    columns = {"input_ids": pa.array([[1]]), "compressed_logprobs": pa.nulls(1, kind)}
    columns["bytepacked_indices"] = pa.array([[[1]]])
    pq.write_table(pa.table(columns), tmp_path / "source/data_0.parquet")
    with pytest.raises(ConfigError, match=r"'compressed_logprobs' of .*data_0.parquet is of type"):
        import_into("distillkit", tmp_path / "source", compression=configuration())


def test_a_capture_of_the_other_form_is_refused(tmp_path: Path, import_into: Any) -> None:
    (tmp_path / "source").mkdir()
    write(tmp_path / "source/data_0.parquet", [small_row([1, 2, 3], 2)])
    legacy = Legacy(vocab_size=1000, k=6, exact_k=2, polynomial_degree=2)
    with pytest.raises(ConfigError, match="no column 'packed_indices', which DistillKit's legacy form has"):
        import_into("distillkit", tmp_path / "source", compression=legacy)


@pytest.mark.parametrize("keep", [0.5, 0.95])
def test_a_half_written_file_is_refused_by_name(tmp_path: Path, import_into: Any, keep: float) -> None:
    (tmp_path / "source").mkdir()
    path = tmp_path / "source/data_0.parquet"
    write(path, [small_row([1, 2, 3], 2)] * 50)
    write(tmp_path / "source/data_1.parquet", [small_row([1, 2, 3], 2)])
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(CorpusUnreadable, match=r"data_0\.parquet is broken or no Parquet"):
        import_into("distillkit", tmp_path / "source", compression=configuration())


def test_files_without_rows_are_refused_as_what_a_dead_writer_leaves(
    tmp_path: Path, import_into: Any
) -> None:
    (tmp_path / "source").mkdir()
    write(tmp_path / "source/data_0.parquet", [])
    with pytest.raises(CorpusUnreadable, match="has no rows"):
        import_into("distillkit", tmp_path / "source", compression=configuration())


def test_other_parameters_make_another_store(tmp_path: Path, import_into: Any) -> None:
    (tmp_path / "source").mkdir()
    write(tmp_path / "source/data_0.parquet", [small_row([1, 2, 3], 2)])
    import_into("distillkit", tmp_path / "source", compression=configuration())
    with pytest.raises(SpecMismatch, match="give another store url"):
        import_into("distillkit", tmp_path / "source", compression=configuration(normalize_t=True))


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


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("d: [", "c.yaml is no YAML"),
        ("- 1", "c.yaml"),
        ("d: 9\nk: 2\nexact_k: 3\nresidual_bins: []", "exact_k 3 is more than k 2"),
        ("d: 9\nk: 2\nexact_k: 1\nresidual_bins: []\nnormalise_t: true", "normalise_t"),
        ("d: 9\nk: x\nexact_k: 1\nresidual_bins: []", "c.yaml: k:"),
        (
            "d: 9\nk: 2\nexact_k: 1\n"
            "residual_bins: [{scale_dtype: float16, element_bits: 99, num_elements: 1}]",
            "element_bits",
        ),
    ],
)
def test_a_config_that_is_none_is_refused_by_file_and_key(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        compression_of(text, "c.yaml")


def test_ids_take_the_bits_that_distillkit_counts_in_float32() -> None:
    from pipeline.interchange.distillkit import _id_bits

    assert [_id_bits(size) for size in (2, 1000, 2**17, 2**17 + 1, 151_936)] == [1, 10, 17, 18, 18]
    assert _id_bits(2**21 + 1) == 21
    assert np.float32(2**21 + 1) == 2**21 + 1
