"""Whole logits in NumPy and Zarr files become targets of any codec, and nothing in them runs."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.targets.codecs import Threshold
from pipeline.targets.codecs.base import uniforms
from pipeline.targets.errors import ConfigError, CorpusUnreadable

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(10, 7)).astype(np.float32)


def save(folder: Path, form: str, logits: np.ndarray, **options: Any) -> None:
    """An array of logits in `folder`, in one of the forms."""
    folder.mkdir(exist_ok=True)
    if form == "npy":
        np.save(folder / "a.npy", logits)
    elif form == "npz":
        np.savez_compressed(folder / "a.npz", logits=logits, labels=np.arange(len(logits)))
    else:
        zarr = pytest.importorskip("zarr")
        chunks = (3, logits.shape[1])
        settings = {"shape": logits.shape, "dtype": logits.dtype, "chunks": chunks}
        if form == "sharded":
            settings["shards"] = (6, logits.shape[1])
        version = 2 if form == "zarr2" else 3
        array = zarr.create_array(folder / "a.zarr", zarr_format=version, **settings, **options)
        array[:] = logits


FORMS = [("arrays", "npy"), ("arrays", "npz"), ("zarr", "zarr2"), ("zarr", "zarr3"), ("zarr", "sharded")]


@pytest.mark.parametrize(("kind", "form"), FORMS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_logits_are_kept_dense_in_the_order_of_the_file(
    tmp_path: Path, import_into: Any, kind: str, form: str, dtype: str
) -> None:
    save(tmp_path / "in", form, LOGITS.astype(dtype))
    found = import_into(kind, tmp_path / "in")
    name = {"npy": "a.npy", "npz": "a.npz"}.get(form, "a.zarr")
    assert list(found.rows) == [f"{name}#{i}" for i in range(10)]
    stored = np.concatenate([row.logits for row in found.rows.values()])
    np.testing.assert_array_equal(stored, LOGITS.astype(dtype).astype(np.float32))
    codec = found.store.spec.heads[0].codec.to_json()
    assert codec == {"kind": "dense", "dtype": "float16" if dtype == "float16" else "float32"}


@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_any_codec_encodes_them_as_it_would_when_labelling(
    tmp_path: Path, import_into: Any, kind: str, form: str
) -> None:
    save(tmp_path / "in", form, LOGITS)
    codec = Threshold(0.1)
    found = import_into(kind, tmp_path / "in", codec=codec.to_json(), seed=3)
    (commit,) = found.store.commits()
    (rows,) = found.store.read(commit)
    draws = np.concatenate([uniforms(3, "logits", key, 0, 1, codec.draws) for key in rows.keys])
    for name, wanted in codec.encode(LOGITS, draws).items():
        np.testing.assert_array_equal(rows.heads["logits"][name], wanted)
    assert commit.statistics["logits.entries"] > 1


SEQUENCES = RNG.normal(size=(5, 4, 7)).astype(np.float32)
"""Logits of five sequences of four places."""


def save_sequences(folder: Path, form: str, logits: np.ndarray, tokens: np.ndarray) -> None:
    folder.mkdir(exist_ok=True)
    if form == "npz":
        np.savez(folder / "a.npz", logits=logits, tokens=tokens)
        return
    group = pytest.importorskip("zarr").create_group(folder / "a")
    for name, values in (("logits", logits), ("input_ids", tokens)):
        group.create_array(name, shape=values.shape, dtype=values.dtype)[:] = values


@pytest.mark.parametrize(("kind", "form"), [("arrays", "npz"), ("zarr", "zarr3")])
@pytest.mark.parametrize("more", [0, 1])
def test_logits_of_sequences_are_targets_of_the_tokens_beside_them(
    tmp_path: Path, import_into: Any, kind: str, form: str, more: int
) -> None:
    tokens = RNG.integers(0, 7, (5, 4 + more))
    save_sequences(tmp_path / "in", form, SEQUENCES, tokens)
    found = import_into(kind, tmp_path / "in")
    assert found.verified.targets == 5 * (3 + more)
    for i, row in enumerate(found.rows.values()):
        assert row.inputs["tokens"].tolist() == tokens[i].tolist()
        np.testing.assert_array_equal(row.logits, SEQUENCES[i, : 3 + more])
    codec = Threshold(0.1)
    found = import_into(kind, tmp_path / "in", codec=codec.to_json(), store=tmp_path / "sampled")
    (commit,) = found.store.commits()
    (rows,) = found.store.read(commit)
    draws = [uniforms(0, "logits", key, 0, 3 + more, codec.draws) for key in rows.keys]
    wanted = codec.encode(SEQUENCES[:, : 3 + more].reshape(-1, 7), np.concatenate(draws))
    for name in wanted:
        np.testing.assert_array_equal(rows.heads["logits"][name], wanted[name])


def test_a_broken_sequence_goes_to_quarantine_whole(tmp_path: Path, import_into: Any) -> None:
    logits, tokens = SEQUENCES.copy(), RNG.integers(0, 7, (5, 4))
    logits[1, 2, 0] = np.nan
    logits[2, 3, 0] = np.nan  # tells of no token that is there
    tokens[3, 1] = 7
    save_sequences(tmp_path / "in", "npz", logits, tokens)
    found = import_into("arrays", tmp_path / "in")
    assert {key: code for key, (code, _) in found.reasons.items()} == {
        "a.npz#1": "non_finite",
        "a.npz#3": "undecodable",
    }
    assert list(found.rows) == ["a.npz#0", "a.npz#2", "a.npz#4"]


@pytest.mark.parametrize(
    "tokens", [np.zeros((5, 6), int), np.zeros((4, 4), int), np.zeros(5, int), np.zeros((5, 4))]
)
def test_tokens_of_another_shape_or_type_are_refused(
    tmp_path: Path, import_into: Any, tokens: np.ndarray
) -> None:
    save_sequences(tmp_path / "in", "npz", SEQUENCES, tokens)
    with pytest.raises(ConfigError, match=r"not whole numbers \[5, 4\]"):
        import_into("arrays", tmp_path / "in")


@pytest.mark.parametrize(("kind", "form"), [("arrays", "npy"), ("zarr", "zarr3")])
def test_logits_of_sequences_without_their_tokens_are_refused(
    tmp_path: Path, import_into: Any, kind: str, form: str
) -> None:
    (tmp_path / "in").mkdir()
    if form == "npy":
        np.save(tmp_path / "in/a.npy", SEQUENCES)
    else:
        zarr = pytest.importorskip("zarr")
        zarr.create_array(tmp_path / "in/a.zarr", shape=SEQUENCES.shape, dtype="float32")[:] = SEQUENCES
    with pytest.raises(ConfigError, match="no tokens or input_ids beside it"):
        import_into(kind, tmp_path / "in")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_not_finite_goes_to_quarantine(tmp_path: Path, import_into: Any, bad: float) -> None:
    logits = LOGITS.copy()
    logits[4, 2] = bad
    logits[7] = -np.inf
    save(tmp_path / "in", "npy", logits)
    found = import_into("arrays", tmp_path / "in")
    assert {key: code for key, (code, _) in found.reasons.items()} == {
        "a.npy#4": "non_finite",
        "a.npy#7": "non_finite",
    }
    np.testing.assert_array_equal(found.rows["a.npy#8"].logits[0], LOGITS[8])


def test_a_logit_that_the_codec_cannot_hold_is_refused_with_the_cure(
    tmp_path: Path, import_into: Any
) -> None:
    save(tmp_path / "in", "npy", LOGITS * 1e6)
    with pytest.raises(ConfigError, match='or "float32" for this head'):
        import_into("arrays", tmp_path / "in", codec={"kind": "dense", "dtype": "float16"})


@pytest.mark.parametrize("keep", [0.2, 0.97])
@pytest.mark.parametrize("form", ["npy", "npz"])
def test_a_file_that_ends_early_is_refused(tmp_path: Path, import_into: Any, form: str, keep: float) -> None:
    save(tmp_path / "in", form, np.tile(LOGITS, (100, 1)))
    path = tmp_path / "in" / f"a.{form}"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(CorpusUnreadable, match=rf"a\.{form}"):
        import_into("arrays", tmp_path / "in")


def test_arrays_of_objects_are_never_unpickled(tmp_path: Path, import_into: Any) -> None:
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in/a.npy", np.array([[Trap(tmp_path)]], dtype=object), allow_pickle=True)
    with pytest.raises(CorpusUnreadable, match="never unpickled"):
        import_into("arrays", tmp_path / "in")
    assert not (tmp_path / "ran").exists()


class Trap:
    """Whoever unpickles it leaves a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return Path.touch, (self.folder / "ran",)


@pytest.mark.parametrize("where", ["filters", "compressor"])
def test_a_zarr_codec_that_could_run_code_is_refused_before_it_is_loaded(
    tmp_path: Path, import_into: Any, where: str
) -> None:
    save(tmp_path / "in", "zarr2", LOGITS)
    path = tmp_path / "in/a.zarr/.zarray"
    metadata = json.loads(path.read_text())
    metadata[where] = [{"id": "pickle", "protocol": 2}] if where == "filters" else {"id": "pickle"}
    path.write_text(json.dumps(metadata))
    (tmp_path / "in/a.zarr/0.0").write_bytes(pickle.dumps(Trap(tmp_path)))
    with pytest.raises(ConfigError, match="the Zarr codec 'pickle'"):
        import_into("zarr", tmp_path / "in")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("inner", [False, True])
def test_unknown_codecs_of_zarr_3_are_refused_also_within_a_shard(
    tmp_path: Path, import_into: Any, inner: bool
) -> None:
    save(tmp_path / "in", "sharded" if inner else "zarr3", LOGITS)
    path = tmp_path / "in/a.zarr/zarr.json"
    metadata = json.loads(path.read_text())
    codecs = metadata["codecs"][0]["configuration"]["codecs"] if inner else metadata["codecs"]
    codecs.append({"name": "numcodecs.pickle", "configuration": {}})
    path.write_text(json.dumps(metadata))
    with pytest.raises(ConfigError, match=r"numcodecs\.pickle"):
        import_into("zarr", tmp_path / "in")


@pytest.mark.parametrize(("form", "chunk"), [("zarr2", "1.0"), ("zarr3", "c/1/0"), ("sharded", "c/1/0")])
def test_a_chunk_that_is_missing_is_a_half_written_array_and_not_zeros(
    tmp_path: Path, import_into: Any, form: str, chunk: str
) -> None:
    save(tmp_path / "in", form, LOGITS)
    (tmp_path / "in/a.zarr" / chunk).unlink()
    with pytest.raises(CorpusUnreadable, match="half-written"):
        import_into("zarr", tmp_path / "in")


@pytest.mark.parametrize("form", ["zarr2", "zarr3"])
def test_a_damaged_chunk_is_refused(tmp_path: Path, import_into: Any, form: str) -> None:
    save(tmp_path / "in", form, LOGITS)
    path = tmp_path / "in/a.zarr" / ("1.0" if form == "zarr2" else "c/1/0")
    path.write_bytes(path.read_bytes()[:9])
    with pytest.raises(CorpusUnreadable, match="does not decode"):
        import_into("zarr", tmp_path / "in")


def test_a_group_gives_its_member_and_an_array_that_is_none_of_logits_is_refused(
    tmp_path: Path, import_into: Any
) -> None:
    zarr = pytest.importorskip("zarr")
    group = zarr.create_group(tmp_path / "in")
    group.create_array("part1/logits", shape=(10, 7), dtype="float32")[:] = LOGITS
    group.create_array("part2/logits", shape=(10, 7), dtype="float32")[:] = LOGITS + 1
    group.create_array("labels", shape=(10,), dtype="int64")[:] = np.arange(10)
    found = import_into("zarr", tmp_path / "in", member="logits")
    assert len(found.rows) == 20
    np.testing.assert_array_equal(found.rows["part2/logits#3"].logits[0], LOGITS[3] + 1)
    with pytest.raises(ConfigError, match=r"labels is an array of int64 of shape \[10\]"):
        import_into("zarr", tmp_path / "in", store=tmp_path / "other")
    shutil.rmtree(tmp_path / "in/part1")


@pytest.mark.parametrize(
    "logits", [np.zeros(3), np.zeros((2, 3, 4, 5)), np.zeros((3, 0)), np.zeros((2, 3), int)]
)
def test_arrays_of_another_shape_or_type_are_refused(
    tmp_path: Path, import_into: Any, logits: np.ndarray
) -> None:
    save(tmp_path / "in", "npy", logits)
    with pytest.raises(ConfigError, match=r"a\.npy is an array of .* of shape"):
        import_into("arrays", tmp_path / "in")


def test_files_of_different_widths_are_refused(tmp_path: Path, import_into: Any) -> None:
    save(tmp_path / "in", "npy", LOGITS)
    np.save(tmp_path / "in/b.npy", LOGITS[:, :5])
    with pytest.raises(ConfigError, match=r"b\.npy of .* has 5 classes and a\.npy 7"):
        import_into("arrays", tmp_path / "in")


def test_an_archive_of_several_arrays_needs_the_members_name(tmp_path: Path, import_into: Any) -> None:
    (tmp_path / "in").mkdir()
    np.savez(tmp_path / "in/a.npz", teacher=LOGITS, other=LOGITS[:2])
    with pytest.raises(ConfigError, match="name one as the member"):
        import_into("arrays", tmp_path / "in")
    assert len(import_into("arrays", tmp_path / "in", member="teacher").rows) == 10
