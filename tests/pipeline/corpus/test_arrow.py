"""Arrow as a corpus: every row once, whatever the batches; saved datasets; no crash of the reader."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.corpus import ArrowFiles, Record
from pipeline.targets.errors import ConfigError, CorpusMissing, CorpusUnreadable
from pipeline.targets.unit import Quarantined
from tests.pipeline.corpus.corpora import read

FORMS = ("stream", "file", "legacy", "compressed", "dictionary stream", "dictionary file")


def save(path: Path, table: pa.Table, form: str = "stream", rows: int = 3) -> None:
    options = pa.ipc.IpcWriteOptions(
        use_legacy_format=form == "legacy", compression="zstd" if form == "compressed" else None
    )
    if form.startswith("dictionary"):
        table = table.set_column(0, "text", table["text"].dictionary_encode())
    new = pa.ipc.new_file if form.endswith("file") else pa.ipc.new_stream
    with new(str(path), table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=rows)


@settings(max_examples=60)
@given(st.integers(0, 40), st.integers(1, 9), st.sampled_from(FORMS), st.integers(1, 4000))
def test_any_cut_of_any_form_gives_every_row_once(count: int, rows: int, form: str, unit_bytes: int) -> None:
    texts = [f"text {i}" for i in range(count)]
    table = pa.table({"text": pa.array(texts, pa.string()), "other": list(range(count))})
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder) / "a.arrow", table, form, rows)
        items = read(ArrowFiles(urls=[folder], unit_bytes=unit_bytes))
    assert [item.data["text"] for item in items] == texts
    assert len({item.key for item in items}) == count
    if not form.startswith("dictionary"):
        assert [item.key.rpartition("#")[2] for item in items] == [str(i % rows) for i in range(count)]


def test_a_large_file_is_cut_between_batches_into_units_of_bounded_size(tmp_path: Path) -> None:
    save(tmp_path / "a.arrow", pa.table({"text": ["x" * 500] * 60}))
    units = list(ArrowFiles(urls=[str(tmp_path)], unit_bytes=6000).units())
    assert len(units) > 5
    assert all(part.stop - part.start <= 6000 for unit in units for part in unit.slices)


def test_columns_become_the_fields_that_a_record_is_to_have(tmp_path: Path) -> None:
    """Images and sounds as Hugging Face stores them, arrays, a struct's own field, an own key."""
    table = pa.table(
        {
            "img": [{"bytes": b"jpeg", "path": None}, {"bytes": None, "path": "elsewhere.jpg"}, None],
            "meta": [{"caption": "a cat", "n": 1}] * 3,
            "vector": [[1.0, 2.0], [3.0], [4.0]],
            "id": [7, 8, 9],
        }
    )
    save(tmp_path / "a.arrow", table)
    source = ArrowFiles(
        urls=[str(tmp_path)],
        columns={"image": "img", "text": "meta.caption", "array": "vector", "n": "meta.n"},
        key_column="id",
    )
    assert ArrowFiles.model_validate_json(source.model_dump_json()) == source
    first, elsewhere, nothing = read(source)
    assert (first.key, first.data["image"], first.data["text"], first.data["n"]) == ("7", b"jpeg", "a cat", 1)
    np.testing.assert_array_equal(first.data["array"], [1.0, 2.0])
    for item in (elsewhere, nothing):
        assert isinstance(item, Quarantined)
        assert item.reason.endswith("no value in 'img'")


def test_a_column_that_is_no_value_is_refused_when_planning(tmp_path: Path) -> None:
    save(tmp_path / "a.arrow", pa.table({"text": ["a"], "nested": [[["a"]]], "x": [{"y": 1}]}))
    for columns, reason in (
        ({"text": "body"}, r"has no column 'body', it has \['text', 'nested', 'x'\]"),
        ({"text": "x.z"}, r"has no column 'x\.z'"),
        ({"text": "nested"}, "column 'nested' of .* is of type list<.*no value for a record"),
    ):
        with pytest.raises(ConfigError, match=reason):
            list(ArrowFiles(urls=[str(tmp_path)], columns=columns).units())


def test_a_text_column_beside_columns_is_refused() -> None:
    with pytest.raises(ValidationError, match="text_column and columns exclude each other"):
        ArrowFiles(urls=["x"], columns={"text": "a"}, text_column="b")


def saved(folder: Path, *names: str) -> None:
    folder.mkdir()
    for name in names:
        save(folder / name, pa.table({"text": [name]}))
    state = {"_data_files": [{"filename": name} for name in names]}
    (folder / "state.json").write_text(json.dumps(state))


def test_of_saved_datasets_and_their_splits_the_named_files_are_read_and_no_cache(tmp_path: Path) -> None:
    saved(tmp_path / "train", "data-00000-of-00002.arrow", "data-00001-of-00002.arrow")
    saved(tmp_path / "test", "data-00000-of-00001.arrow")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    save(tmp_path / "train" / "cache-77.arrow", pa.table({"text": ["cached"]}))
    assert [item.data["text"] for item in read(ArrowFiles(urls=[str(tmp_path)]))] == [
        "data-00000-of-00001.arrow",
        "data-00000-of-00002.arrow",
        "data-00001-of-00002.arrow",
    ]
    (tmp_path / "train" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(CorpusMissing, match=r"train/state\.json names data-00001-of-00002\.arrow"):
        list(ArrowFiles(urls=[str(tmp_path)]).units())


def test_a_state_file_of_something_else_or_with_paths_leads_nowhere(tmp_path: Path) -> None:
    save(tmp_path / "a.arrow", pa.table({"text": ["a"]}))
    for state in ("[", "[]", '{"_data_files": 3}', '{"other": 1}', "[" * 10**5):
        (tmp_path / "state.json").write_text(state)
        assert len(read(ArrowFiles(urls=[str(tmp_path)]))) == 1
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "../../etc/passwd"}]}')
    with pytest.raises(CorpusMissing):
        list(ArrowFiles(urls=[str(tmp_path)]).units())


@pytest.mark.parametrize("form", ["stream", "file"])
def test_a_file_that_ends_early_is_named(tmp_path: Path, form: str) -> None:
    path = tmp_path / "a.arrow"
    save(path, pa.table({"text": ["x" * 99] * 9}), form)
    whole = path.read_bytes()
    for stop in (0, 5, 60, 400, 1000):
        path.write_bytes(whole[:stop])
        with pytest.raises(CorpusUnreadable, match=r"a\.arrow is broken or no Arrow"):
            read(ArrowFiles(urls=[str(path)]))


@settings(max_examples=200)
@given(st.data())
def test_any_damage_gives_records_quarantine_or_one_sentence(data: st.DataObject) -> None:
    """Offsets that point outside would take the process with them."""
    table = pa.table({"text": ["abc", None, "défg"] * 3, "img": [{"bytes": b"12345", "path": None}] * 9})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.arrow"
        save(path, table, data.draw(st.sampled_from(FORMS)))
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 6))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content)
        with contextlib.suppress(CorpusUnreadable, ConfigError):
            for item in read(ArrowFiles(urls=[folder], columns={"text": "text", "image": "img"})):
                assert isinstance(item, Record | Quarantined)
