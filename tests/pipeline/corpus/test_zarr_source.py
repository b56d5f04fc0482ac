"""Zarr as a corpus: rows of every version and cut, and no codec that could run code."""

from __future__ import annotations

import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus import Record, ZarrArrays
from pipeline.targets.errors import ConfigError, CorpusChanged, CorpusUnreadable

zarr = pytest.importorskip("zarr")


def read(source: ZarrArrays) -> list[Record]:
    items = [item for unit in source.units() for item in source.read(unit)]
    return [item for item in items if isinstance(item, Record)]


@settings(max_examples=25)
@given(
    st.integers(0, 40), st.integers(1, 9), st.integers(1, 50), st.sampled_from(["2", "3", "3 sharded"]),
    st.sampled_from([(), (3,), (2, 4)]), st.sampled_from(["uint8", "float32", ">i2"]),
)  # fmt: skip
def test_any_array_and_any_cut_give_every_row_once(
    rows: int, chunk: int, unit_rows: int, form: str, shape: tuple[int, ...], dtype: str
) -> None:
    values = np.random.default_rng(rows).integers(0, 200, (rows, *shape)).astype(dtype)
    with tempfile.TemporaryDirectory() as folder:
        shards: Any = {"shards": (2 * chunk, *shape)} if "sharded" in form else {}
        array = zarr.create_array(
            f"{folder}/a", shape=values.shape, dtype=values.dtype, chunks=(chunk, *shape),
            zarr_format=int(form[0]), config={"write_empty_chunks": True}, **shards,
        )  # fmt: skip
        array[:] = values
        items = read(ZarrArrays(urls=[folder], unit_rows=unit_rows))
    assert [item.key for item in items] == [f"a#{i}" for i in range(rows)]
    for item, value in zip(items, values, strict=True):
        np.testing.assert_array_equal(item.data["array"], value)


def test_arrays_are_found_by_folder_member_pattern_and_glob(tmp_path: Path) -> None:
    group = zarr.open_group(str(tmp_path / "set.zarr"), mode="w")
    for name in ("images", "labels"):
        group.create_array(name, data=np.ones(3))
    zarr.create_array(str(tmp_path / "other" / "images"), data=np.ones(2))

    def keys(*urls: str, **settings: Any) -> list[str]:
        return [item.key for item in read(ZarrArrays(urls=[str(tmp_path / url) for url in urls], **settings))]

    assert keys("", member="images") == [*(f"other/images#{i}" for i in range(2))] + [
        f"set.zarr/images#{i}" for i in range(3)
    ]
    assert keys("*.zarr", member="labels") == [f"set.zarr/labels#{i}" for i in range(3)]
    assert len(keys("", exclude=["set.zarr/**"])) == 2
    assert keys("set.zarr/labels") == [f"labels#{i}" for i in range(3)]


def test_appended_rows_are_a_change_of_the_array(tmp_path: Path) -> None:
    array = zarr.create_array(str(tmp_path / "a"), data=np.ones((4, 2)), chunks=(2, 2))
    source = ZarrArrays(urls=[str(tmp_path)])
    units = list(source.units())
    array.append(np.ones((2, 2)))
    planned = {part.url: part.fingerprint for unit in units for part in unit.slices}
    with pytest.raises(CorpusChanged, match=r"/a is no longer the one that was planned"):
        list(source.units(planned))
    with pytest.raises(CorpusChanged):
        list(source.read(units[0]))


def test_what_is_half_written_broken_or_no_number_is_named(tmp_path: Path) -> None:
    array = zarr.create_array(str(tmp_path / "half"), shape=(4, 2), chunks=(2, 2), dtype="f4")
    array[:2] = 1
    with pytest.raises(CorpusUnreadable, match=r"half has 1 of 2 chunks"):
        read(ZarrArrays(urls=[str(tmp_path / "half")]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Zarr's, that strings of a fixed length may change
        zarr.create_array(str(tmp_path / "text"), data=np.array(["a", "b"]))
    with pytest.raises((CorpusUnreadable, ConfigError), match="text"):
        read(ZarrArrays(urls=[str(tmp_path / "text")]))
    (tmp_path / "bad").mkdir()
    for content in ("{", "[]", '{"node_type": "array"}'):
        (tmp_path / "bad" / "zarr.json").write_text(content)
        with pytest.raises(CorpusUnreadable, match="bad"):
            read(ZarrArrays(urls=[str(tmp_path / "bad")]))
    whole = zarr.create_array(str(tmp_path / "noise"), data=np.ones((4, 2)), chunks=(2, 2))
    assert whole.nchunks == 2
    (tmp_path / "noise" / "c" / "1" / "0").write_bytes(b"noise")
    with pytest.raises(CorpusUnreadable, match="noise does not decode at row"):
        read(ZarrArrays(urls=[str(tmp_path / "noise")]))


def test_a_codec_that_might_run_code_is_refused_before_it_is_asked(tmp_path: Path) -> None:
    zarr.create_array(str(tmp_path / "a"), data=np.ones((4, 2)), zarr_format=2)
    metadata = json.loads((tmp_path / "a" / ".zarray").read_text())
    metadata["filters"] = [{"id": "pickle", "protocol": 5}]
    (tmp_path / "a" / ".zarray").write_text(json.dumps(metadata))
    with pytest.raises(ConfigError, match="codec 'pickle'"):
        read(ZarrArrays(urls=[str(tmp_path)]))
