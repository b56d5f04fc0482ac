"""`decant import` and `decant export`: whole ways on the command line, and the answers to mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.targets import Store

Decant = Callable[..., Any]

ROW = {
    "input_ids": [1, 2, 3],
    "target_token_ids": [[2, 9], [3, 9], [4, 9]],
    "target_logprobs": [[-0.5, -2.0], [-0.25, -3.0], [-1.0, -1.0]],
    "target_mask": [[1, 1]] * 3,
}


@pytest.fixture
def columns(tmp_path: Path) -> Path:
    """Two files of top-k columns."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a", "b"):
        pq.write_table(pa.Table.from_pylist([ROW] * 3), folder / f"{name}.parquet")
    return folder


def test_an_import_is_verified_inspected_and_exported(decant: Decant, tmp_path: Path, columns: Path) -> None:
    words = ["import", "topk-columns", "in", "store", "--size", "10", "--k", "2"]
    result = decant(tmp_path, *words)
    assert result.exit_code == 0
    assert "imported: 6 records in 2 units, 12 targets" in result.stdout
    assert decant(tmp_path, *words).exit_code == 0  # again: nothing is left to do
    assert "all of it is whole" in decant(tmp_path, "verify", "store").stdout
    shown = json.loads(decant(tmp_path, "inspect", "store", "--json").stdout)
    assert shown["spec"]["teacher"]["format"] == "topk-columns"
    assert shown["progress"]["units"] == {"planned": 2, "committed": 2, "pending": 0}
    result = decant(tmp_path, "export", "store", "out", "--format", "topk-columns", "--k", "2")
    assert result.exit_code == 0
    assert "exported: 6 rows in 2 files" in result.stdout
    found = pq.read_table(sorted((tmp_path / "out").glob("*.parquet"))[0]).to_pylist()[0]
    assert found["input_ids"] == ROW["input_ids"]
    assert found["target_token_ids"][:2] == ROW["target_token_ids"][:2]
    assert "exported: 0 rows in 0 files" in decant(tmp_path, "export", "store", "out", "--k", "2").stdout


def test_the_teachers_tokenizer_is_held_to_from_the_import_on(
    decant: Decant, tmp_path: Path, columns: Path, tokenizer_directory: Path
) -> None:
    words = ["import", "topk-columns", "in", "store", "--k", "2", "--tokenizer", str(tokenizer_directory)]
    result = decant(tmp_path, *words, "--size", "10")
    assert result.exit_code == 2
    assert "tokens and the head has 10" in result.stderr
    assert decant(tmp_path, *words, "--size", "320").exit_code == 0
    vocabulary = Store.open(str(tmp_path / "store")).spec.vocabulary
    assert vocabulary is not None
    assert (vocabulary.size <= 300, vocabulary.padded_size) == (True, 320)
    assert decant(tmp_path, "inspect", "store", "--tokenizer", str(tokenizer_directory)).exit_code == 0


def test_distillkits_own_config_beside_the_data_is_found(decant: Decant, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    exact = np.array([-0.5, -1.5], "<f4").view(np.uint8).tolist()
    table = {
        "input_ids": pa.array([[1, 2, 3]], pa.list_(pa.uint64())),
        "compressed_logprobs": pa.array([[exact] * 2], pa.list_(pa.list_(pa.uint8()))),
        "bytepacked_indices": pa.array([[[0x53]] * 2], pa.list_(pa.list_(pa.uint8()))),
    }
    pq.write_table(pa.table(table), tmp_path / "in/data_0.parquet")
    words = ["import", "distillkit", "in", "store"]
    result = decant(tmp_path, *words)
    assert result.exit_code == 2
    assert "as --config" in result.stderr
    config = "d: 16\nk: 2\nexact_k: 2\nresidual_bins: []\ndelta_encoding: false\n"
    (tmp_path / "in/compression_config.yaml").write_text(config)
    result = decant(tmp_path, *words, "--size", "17")
    assert result.exit_code == 2
    assert "size 17 is not the config's 16" in result.stderr
    assert decant(tmp_path, *words).exit_code == 0
    (commit,) = Store.open(str(tmp_path / "store")).commits()
    assert commit.targets == 2


def test_arrays_are_encoded_by_the_codec_that_was_asked_for(decant: Decant, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(6, 9)).astype(np.float32))
    words = ["import", "arrays", "a.npy", "store", "--codec", "topk:k=3,betas=[0.5, 1.0],dtype=float32"]
    assert decant(tmp_path, *words).exit_code == 0
    codec = Store.open(str(tmp_path / "store")).spec.head("logits").codec.to_json()
    assert codec == {"kind": "topk", "k": 3, "betas": (0.5, 1.0), "dtype": "float32"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["import", "distilkit", "in", "s"], 'did you mean "distillkit"'),
        (["import", "topk-columns", "in", "s", "--size", "10"], "k: missing"),
        (["import", "topk-columns", "in", "s", "--size", "0", "--k", "2"], "size:"),
        (
            ["import", "topk-columns", "in", "s", "--size", "10", "--k", "2", "--member", "x"],
            "member: unknown key",
        ),
        (["import", "topk-columns", "in", "s", "--size", "9", "--k", "2", "--alignment", "no"], "alignment:"),
        (["import", "topk-columns", "gone", "s", "--size", "10", "--k", "2"], "there is nothing at"),
        (["import", "tinyvit", "in", "s", "--size", "70000"], "size:"),
        (["import", "arrays", "in", "s", "--codec", "threshhold:threshold=0.1"], "threshhold"),
        (["import", "arrays", "in", "s", "--codec", "threshold:threshold=2.0"], "between 1/4096 and 0.5"),
        (["import", "distillkit", "in", "s", "--config", "gone.yaml"], "gone.yaml cannot be read"),
        (["export", "gone", "out"], "there is no store"),
    ],
)
def test_a_mistake_is_answered_with_its_name_and_code_2(
    decant: Decant, tmp_path: Path, columns: Path, words: list[str], said: str
) -> None:
    result = decant(tmp_path, *words)
    assert (result.exit_code, said in " ".join(result.stderr.split())) == (2, True), result.stderr
    assert not (tmp_path / "s").exists()


def test_an_import_that_is_killed_is_finished_by_the_same_command(decant: Decant, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i in range(60):
        np.save(tmp_path / f"in/{i}.npy", np.random.default_rng(i).normal(size=(40, 500)).astype(np.float32))
    words = ["import", "arrays", "in", "store", "--codec", "threshold:threshold=0.05"]
    process = subprocess.Popen([sys.executable, "-m", "jobs.cli", *words], cwd=tmp_path)
    try:
        while process.poll() is None and len(list(tmp_path.glob("store/commits/*.json"))) < 5:
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    before = Store.open(str(tmp_path / "store")).committed()
    assert 5 <= len(before) <= 60
    assert decant(tmp_path, *words).exit_code == 0
    verified = Store.open(str(tmp_path / "store")).verify()
    assert (verified.problems, verified.units, verified.rows, verified.missing_units) == ((), 60, 2400, 0)


def test_a_half_written_source_leaves_no_store(decant: Decant, tmp_path: Path, columns: Path) -> None:
    path = columns / "b.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    result = decant(tmp_path, "import", "topk-columns", "in", "store", "--size", "10", "--k", "2")
    assert result.exit_code == 1
    assert "b.parquet is broken or no Parquet" in " ".join(result.stderr.split())
    assert not (tmp_path / "store").exists()


def test_an_imported_store_is_audited_with_the_teacher_that_is_named(tmp_path: Path, decant: Decant) -> None:
    from pipeline.teachers import Fake

    columns: dict[str, list[Any]] = {"input_ids": [], "target_token_ids": [], "target_logprobs": []}
    for seed in range(6):
        tokens = np.random.default_rng(seed).integers(0, 64, 40)
        logits = Fake(size=320).load().logits(tokens).astype(np.float64)
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        ids = np.argsort(-log_p, axis=1)[:, :32]
        columns["input_ids"].append(tokens.tolist())
        columns["target_token_ids"].append(ids.tolist())
        columns["target_logprobs"].append(np.take_along_axis(log_p, ids, axis=1).tolist())
    pq.write_table(pa.table(columns), tmp_path / "kd.parquet")
    made = decant(tmp_path, "import", "topk-columns", "kd.parquet", "store", "--size", "320", "--k", "32")
    assert made.exit_code == 0, made.output
    assert "imported 1 of 1 units" in made.stderr
    true = decant(tmp_path, "audit", "store", "--teacher", "{kind: fake, size: 320}")
    assert true.exit_code == 0, true.output
    assert "nothing is wrong in 6 rows of 1 units" in true.stdout
    other = decant(tmp_path, "audit", "store", "--teacher", "{kind: fake, size: 320, seed: 1}")
    assert other.exit_code == 1
    assert "another teacher, or other weights" in other.stdout
    for words, said in (
        (["store"], "give --teacher"),
        (["store", "--teacher", "nowhere"], "nowhere"),
        (["store", "--teacher", "{kind: fake, sizes: 3}"], "--teacher: teacher.sizes: unknown key"),
        (["nowhere", "--teacher", "{kind: fake, size: 320}"], "no store at"),
        (["store", "--teacher", "{kind: fake, size: 9}"], "has not the head logits"),
    ):
        refused = decant(tmp_path, "audit", *words)
        assert refused.exit_code == 2, refused.output
        assert said in refused.stderr
