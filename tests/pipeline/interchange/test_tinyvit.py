"""TinyViT's logits files are read as TinyViT reads them, and more of what can be wrong with them is seen."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.interchange import tinyvit
from pipeline.targets.errors import ConfigError, CorpusMissing, CorpusUnreadable

K = 3
SIZE = 40_000

Record = tuple[str, int, list[int], list[float]]


def write(folder: Path, rank: int, records: list[Record]) -> None:
    """Keys and values as TinyViT's writer leaves them: classes as int16, which wrap above 32767."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"rank{rank}-keys.txt").write_text("".join(f"{key}\n" for key, *_ in records))
    data = b""
    for _, seed, ids, values in records:
        wrapped = [(i + 2**15) % 2**16 - 2**15 for i in ids]
        data += struct.pack(f"<i{len(ids)}h{len(values)}e", seed, *wrapped, *values)
    (folder / f"rank{rank}-values.bin").write_bytes(data)


def records(count: int, first: int = 0) -> list[Record]:
    return [
        (f"n{i:05}/img_{i}.jpg", 1000 + i, [i % 100, 500, 39_999], [0.5, 0.25, 0.125])
        for i in range(first, first + count)
    ]


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(
            st.integers(-(2**31), 2**31 - 1),
            st.lists(st.integers(0, SIZE - 1), min_size=K, max_size=K, unique=True),
            st.lists(st.floats(2**-14, 0.25, width=16), min_size=K, max_size=K),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_seeds_classes_and_probabilities_come_out_as_they_went_in(import_anywhere: Any, items: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        saved = [(f"{i}/ü.jpg", *item) for i, item in enumerate(items)]
        write(Path(folder, "logits_top3_epoch7"), 0, saved)
        found = import_anywhere("tinyvit", Path(folder, "logits_top3_epoch7"), Path(folder, "s"), size=SIZE)
        assert len(found.rows) == len(saved)
        for key, seed, ids, values in saved:
            row = found.rows[key]
            assert int(row.inputs["seed"]) == seed
            assert row.probabilities(0) == pytest.approx(dict(zip(ids, values, strict=True)), rel=1e-5)
            assert np.exp(row.tail[0]) == pytest.approx(1 - sum(values), abs=1e-5)


def test_each_epochs_views_are_there_with_keys_of_their_own(tmp_path: Path, import_into: Any) -> None:
    for epoch in (0, 1):
        for rank in (0, 1, 10):
            write(tmp_path / f"in/logits_top3_epoch{epoch}", rank, records(4, 4 * rank))
    found = import_into("tinyvit", tmp_path / "in", size=SIZE)
    assert len(found.rows) == 24
    assert "logits_top3_epoch1/n00043/img_43.jpg" in found.rows
    assert found.store.spec.views["parameters"] == "seed"
    assert found.store.spec.teacher["tail"] == "from_sum"


def test_units_are_cut_within_a_file_and_none_is_lost(
    tmp_path: Path, import_into: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tinyvit, "UNIT_ROWS", 4)
    for rank, count in ((0, 9), (1, 4), (2, 0), (3, 8)):
        write(tmp_path / "in/logits_top3_epoch0", rank, records(count, 100 * rank))
    found = import_into("tinyvit", tmp_path / "in/logits_top3_epoch0", size=SIZE)
    assert found.verified.units == 6
    assert set(found.rows) == {
        key for first, n in ((0, 9), (100, 4), (300, 8)) for key, *_ in records(n, first)
    }
    assert int(found.rows["n00307/img_307.jpg"].inputs["seed"]) == 1307


def test_a_key_that_two_ranks_saved_is_taken_once(tmp_path: Path, import_into: Any) -> None:
    folder = tmp_path / "in/logits_top3_epoch0"
    write(folder, 0, records(3))
    write(folder, 1, [("n00001/img_1.jpg", 9, [1, 2, 3], [0.1, 0.1, 0.1]), *records(2, 10)])
    found = import_into("tinyvit", folder, size=SIZE)
    assert len(found.rows) == 5
    assert int(found.rows["n00001/img_1.jpg"].inputs["seed"]) == 1001
    assert found.reasons["rank1#0"][0] == "duplicate"
    assert found.verified.records == 6


@pytest.mark.parametrize(
    ("ids", "values", "code"),
    [
        ([1, 2, 45_000], [0.5, 0.2, 0.1], "undecodable"),
        ([1, 1, 2], [0.5, 0.2, 0.1], "undecodable"),
        ([1, 2, 3], [0.9, 0.9, 0.1], "undecodable"),
        ([1, 2, 3], [float("nan"), 0.1, 0.1], "non_finite"),
        ([1, 2, 3], [float("inf"), 0.1, 0.1], "non_finite"),
        ([1, 2, 3], [-0.5, 0.1, 0.1], "non_finite"),
    ],
)
def test_a_broken_record_goes_to_quarantine(
    tmp_path: Path, import_into: Any, ids: list[int], values: list[float], code: str
) -> None:
    folder = tmp_path / "in/logits_top3_epoch0"
    write(folder, 0, [*records(2), ("bad.jpg", 1, ids, values), *records(2, 5)])
    found = import_into("tinyvit", folder, size=SIZE)
    assert len(found.rows) == 4
    assert found.reasons["rank0#2"][0] == code
    assert "bad.jpg" in found.reasons["rank0#2"][1]


@pytest.mark.parametrize("cut", [1, 16, 50])
def test_a_half_written_file_of_values_is_refused(tmp_path: Path, import_into: Any, cut: int) -> None:
    folder = tmp_path / "in/logits_top3_epoch0"
    write(folder, 0, records(5))
    path = folder / "rank0-values.bin"
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(CorpusUnreadable, match=r"rank0-values\.bin has .* bytes, and 5 keys with 3 classes"):
        import_into("tinyvit", folder, size=SIZE)


def test_half_of_a_pair_is_refused(tmp_path: Path, import_into: Any) -> None:
    folder = tmp_path / "in/logits_top3_epoch0"
    write(folder, 0, records(5))
    (folder / "rank0-keys.txt").unlink()
    with pytest.raises(CorpusUnreadable, match=r"has no rank0-keys\.txt"):
        import_into("tinyvit", folder, size=SIZE)


def test_the_number_of_classes_is_not_guessed(tmp_path: Path, import_into: Any) -> None:
    write(tmp_path / "plain", 0, records(2))
    with pytest.raises(ConfigError, match="no number of classes"):
        import_into("tinyvit", tmp_path / "plain", size=SIZE)
    assert len(import_into("tinyvit", tmp_path / "plain", size=SIZE, k=3).rows) == 2
    write(tmp_path / "in/logits_top4_epoch0", 0, records(2))
    with pytest.raises(ConfigError, match=r"different numbers of classes \(\[3, 4\]\)"):
        import_into("tinyvit", tmp_path / "in", size=SIZE, k=3)
    with pytest.raises(CorpusMissing):
        import_into("tinyvit", tmp_path / "store", size=SIZE)
