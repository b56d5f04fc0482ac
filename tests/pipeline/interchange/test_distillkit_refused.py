"""A capture is never read with a wrong configuration; what is broken is refused or quarantined by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.interchange.distillkit import compression_of
from pipeline.interchange.distillkit_forms import Legacy
from pipeline.targets.errors import ConfigError, CorpusUnreadable, SpecMismatch
from tests.pipeline.interchange.distillkit_format import (
    COEFFICIENTS,
    SMALL,
    configuration,
    packed,
    position,
    small_row,
    write,
)


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


def test_a_capture_of_the_other_form_is_refused(tmp_path: Path, import_into: Any) -> None:
    (tmp_path / "source").mkdir()
    write(tmp_path / "source/data_0.parquet", [small_row([1, 2, 3], 2)])
    legacy = Legacy(vocab_size=1000, k=6, exact_k=2, polynomial_degree=2)
    with pytest.raises(ConfigError, match="no column 'packed_indices', which DistillKit's legacy form has"):
        import_into("distillkit", tmp_path / "source", compression=legacy)


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


def test_other_parameters_make_another_store(tmp_path: Path, import_into: Any) -> None:
    (tmp_path / "source").mkdir()
    write(tmp_path / "source/data_0.parquet", [small_row([1, 2, 3], 2)])
    import_into("distillkit", tmp_path / "source", compression=configuration())
    with pytest.raises(SpecMismatch, match="give another store url"):
        import_into("distillkit", tmp_path / "source", compression=configuration(normalize_t=True))


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
