"""Arrays as a corpus: every row once, nothing unpickled."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus import ArrayFiles, Record
from pipeline.targets.errors import ConfigError, CorpusUnreadable


def read(source: ArrayFiles) -> list[Record]:
    items = [item for unit in source.units() for item in source.read(unit)]
    return [item for item in items if isinstance(item, Record)]


@settings(max_examples=40)
@given(
    st.integers(0, 50),
    st.sampled_from([(), (3,), (2, 4)]),
    st.sampled_from(["uint8", "float32", ">i2"]),
    st.integers(1, 60),
    st.sampled_from(["npy", "npz", "compressed"]),
)
def test_any_array_and_any_unit_give_every_row_once(
    rows: int, shape: tuple[int, ...], dtype: str, unit_rows: int, form: str
) -> None:
    values = np.random.default_rng(rows).integers(0, 200, (rows, *shape)).astype(dtype)
    with tempfile.TemporaryDirectory() as folder:
        if form == "npy":
            np.save(f"{folder}/a.npy", values)
        else:
            save: Any = np.savez if form == "npz" else np.savez_compressed
            save(f"{folder}/a.npz", images=values, labels=np.arange(3))
        items = read(
            ArrayFiles(urls=[folder], member=None if form == "npy" else "images", unit_rows=unit_rows)
        )
    name = "a.npy" if form == "npy" else "a.npz"
    assert [item.key for item in items] == [f"{name}#{i}" for i in range(rows)]
    for item, value in zip(items, values, strict=True):
        assert isinstance(item.data["array"], np.ndarray)
        assert item.data["array"].dtype == values.dtype
        np.testing.assert_array_equal(item.data["array"], value)


def test_an_array_of_objects_is_never_unpickled(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    objects: npt.NDArray[Any] = np.array([Bomb()], dtype=object)
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    with pytest.raises(CorpusUnreadable, match=r"a\.npy holds Python objects"):
        read(ArrayFiles(urls=[str(tmp_path)]))
    assert not (tmp_path / "exploded").exists()


def test_an_archive_of_several_arrays_asks_which(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros(2), y=np.zeros(2))
    for member in (None, "z"):
        with pytest.raises(ConfigError, match=r"holds the arrays \['x', 'y'\]"):
            read(ArrayFiles(urls=[str(tmp_path)], member=member))


def test_broken_files_are_named(tmp_path: Path) -> None:
    whole = tmp_path / "whole.npy"
    np.save(whole, np.zeros((10, 10)))
    cases = {
        "cut.npy": whole.read_bytes()[:-1],
        "text.npy": b"not an array",
        "text.npz": b"not an archive",
        "empty.npy": b"",
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CorpusUnreadable, match=name):
            read(ArrayFiles(urls=[str(tmp_path / name)]))
    np.save(tmp_path / "fortran.npy", np.asfortranarray(np.ones((3, 3))))
    with pytest.raises(CorpusUnreadable, match="Fortran"):
        read(ArrayFiles(urls=[str(tmp_path / "fortran.npy")]))
    np.save(tmp_path / "scalar.npy", np.float32(1))
    with pytest.raises(CorpusUnreadable, match="single number"):
        read(ArrayFiles(urls=[str(tmp_path / "scalar.npy")]))
