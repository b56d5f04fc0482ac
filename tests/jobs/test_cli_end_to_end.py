"""From a folder of text to a student, by the command line alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.tiny_llama import llama

Decant = Callable[..., Any]


@pytest.fixture
def tiny_llama(tmp_path: Path) -> Path:
    """A model directory of transformers with random weights, for 300 tokens."""
    path = tmp_path / "llama"
    llama(300).save_pretrained(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("container", ["webdataset", "zarr"])
def test_a_job_names_its_container_and_a_store_is_converted_into_another(
    small_job: Any, decant: Decant, container: str
) -> None:
    folder = small_job.folder
    assert decant(folder, "label", str(small_job.file), f"store.container={container}").exit_code == 0
    assert f", {container}, " in decant(folder, "inspect", "store").stdout
    train = ["store.container=" + container, "train.steps=2", "train.evaluate_every=2"]
    assert decant(folder, "train", str(small_job.file), *train).exit_code == 0

    converted = decant(folder, "convert", "store", "copy", "--container", "parquet")
    assert converted.exit_code == 0, converted.stderr
    assert "converted 3 of 3 units" in converted.stderr
    assert "verified 3 of 3 units" in converted.stderr
    assert "all of it is whole" in converted.stdout
    assert f"of {container} are" in converted.stdout
    assert len(list((folder / "copy" / "shards").rglob("*.parquet"))) == 3
    assert decant(folder, "convert", "store", "copy", "--container", "parquet").exit_code == 0

    for words, said in (
        (("store", "x", "--container", container), f"is a {container} store already"),
        (("store", "x", "--container", "tfrecord"), "unknown container"),
        (("nowhere", "x", "--container", "zarr"), "no store at"),
        (
            ("store", "copy", "--container", "zarr" if container == "webdataset" else "webdataset"),
            "container",
        ),
    ):
        refused = decant(folder, "convert", *words)
        assert refused.exit_code == 2
        assert said in refused.stderr


def test_text_becomes_a_store_and_a_student(small_job: Any, decant: Decant, tiny_llama: Path) -> None:
    small_job.settings["teacher"] = {"kind": "causal_lm", "path": str(tiny_llama), "device": "cpu"}
    job, folder = str(small_job.file), small_job.folder

    planned = decant(folder, "plan", job)
    assert planned.exit_code == 0
    assert "3 files" in planned.stdout
    assert "--measure" in planned.stdout

    measured = decant(folder, "plan", job, "--measure")
    assert measured.exit_code == 0
    assert "judged by 1 labelled" in measured.stdout

    first = decant(folder, "label", job)
    assert first.exit_code == 0, first.stderr
    assert "labelled: 3 records in 3 units" in first.stdout
    assert "units 3 of 3" in first.stderr
    shards = sorted((folder / "store" / "shards").rglob("*.parquet"))
    assert len(shards) == 3

    again = decant(folder, "label", job)
    assert again.exit_code == 0
    assert "labelled: 3 records in 3 units" in again.stdout
    assert sorted((folder / "store" / "shards").rglob("*.parquet")) == shards

    verified = decant(folder, "verify", "store")
    assert verified.exit_code == 0
    assert "3 shards" in verified.stdout
    assert "0 planned units are not labelled yet" in verified.stdout

    report = json.loads(decant(folder, "inspect", job, "--json", "--rows", "2", "--positions", "5").stdout)
    assert report["progress"]["units"] == {"planned": 3, "committed": 3, "pending": 0}
    assert report["progress"]["bytes_per_target"] > 0
    assert len(report["rows"]) == 2
    row = report["rows"][0]
    assert row["text"].startswith("The duck swims on the pond")
    targets = row["heads"]["logits"]
    assert [target["position"] for target in targets] == [0, 8, 15, 22, 30]
    assert all(0 <= entry["probability"] <= 1 for target in targets for entry in target["likeliest"])
    assert targets[0]["context"] + targets[0]["next"]["text"] == row["text"][: len("The duck")]

    drawn = decant(folder, "inspect", "store", "--rows", "1")
    assert drawn.exit_code == 0
    assert "To see text instead of ids" in drawn.stdout

    trained = decant(folder, "train", job)
    assert trained.exit_code == 0, trained.stderr
    assert "trained 4 steps" in trained.stdout
    more = decant(folder, "train", job)
    assert more.exit_code == 0
    assert (folder / "student" / "checkpoints" / "last").exists()


def test_a_grown_corpus_adds_units_and_labels_only_them(small_job: Any, decant: Decant) -> None:
    job, folder = str(small_job.file), small_job.folder
    assert decant(folder, "label", job).exit_code == 0
    before = sorted((folder / "store" / "shards").rglob("*.parquet"))
    (folder / "corpus" / "loons.txt").write_text("Loons call at night. " * 20)
    grown = decant(folder, "label", job)
    assert grown.exit_code == 0
    assert "labelled: 4 records in 4 units" in grown.stdout
    after = sorted((folder / "store" / "shards").rglob("*.parquet"))
    assert set(before) < set(after)
    assert len(after) == 4


def test_a_store_on_s3_is_reached_by_the_job_file_and_no_secret_is_written(
    small_job: Any, decant: Decant, s3_bucket_url: tuple[str, dict[str, Any]]
) -> None:
    url, options = s3_bucket_url
    small_job.settings["store"] |= {"url": url, "options": options}
    job, folder = str(small_job.file), small_job.folder
    output = ""
    for words in (["label", job], ["inspect", job, "--json"], ["verify", job], ["train", job], ["gc", job]):
        result = decant(folder, *words)
        assert result.exit_code == 0, result.output
        output += result.output
    assert "labelled: 3 records in 3 units" in output
    assert options["secret"] not in output
    written = b"".join(path.read_bytes() for path in (folder / "student").rglob("*") if path.is_file())
    assert options["secret"].encode() not in written


def test_classes_are_labelled_and_shown_with_their_probabilities(tmp_path: Path, decant: Decant) -> None:
    import numpy as np
    import yaml

    np.save(tmp_path / "images.npy", np.random.default_rng(0).random((20, 1, 4, 4)).astype(np.float32))
    settings = {
        "corpus": {"kind": "arrays", "urls": ["images.npy"], "unit_rows": 8},
        "views": {"kind": "arrays", "shape": [1, 4, 4]},
        "teacher": {"kind": "fake", "size": 10, "positions": "single"},
        "store": {"url": "store", "heads": {"logits": {"kind": "dense", "dtype": "float32"}}},
        "train": {"output": "student", "model": {"kind": "mlp", "hidden": [8]}, "steps": 2, "batch_rows": 4},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(settings))
    assert decant(tmp_path, "label", "job.yaml").exit_code == 0
    report = json.loads(decant(tmp_path, "inspect", "store", "--json", "--entries", "10").stdout)
    (target,) = report["rows"][0]["heads"]["logits"]
    assert sum(entry["probability"] for entry in target["likeliest"]) == pytest.approx(1)
    assert report["rows"][0]["key"] == "images.npy#0"
    assert "images.npy#0" in decant(tmp_path, "inspect", "store").stdout
    assert decant(tmp_path, "train", "job.yaml").exit_code == 0


@pytest.mark.slow
def test_a_budget_becomes_a_threshold_a_table_and_a_picture(small_job: Any, decant: Decant) -> None:
    job, folder = str(small_job.file), small_job.folder
    wanted = ("--budget", "12B/token", "--pilot", "300", "--plot", "pilot.svg", "--price", "2")
    run = decant(folder, "plan", job, *wanted)
    assert run.exit_code == 0, run.stderr
    title, chosen, *others = (line.split() for line in run.stdout.splitlines())
    assert title[:2] == ["codec", "B/token"]
    assert chosen[:2] == ["→", "threshold"]
    assert float(chosen[3]) <= 12.05
    assert [line[0] for line in others[:3]] == ["threshold", "threshold", "topk"]
    assert "replica hours" in run.stdout
    assert f"store.heads.logits.threshold={chosen[2]}" in run.stdout
    assert "<svg" in (folder / "pilot.svg").read_text()
    assert not (folder / "store").exists()
    wrong = decant(folder, "plan", job, "--budget", "plenty")
    assert wrong.exit_code == 2
    assert '"plenty" is no number of bytes' in wrong.stderr


@pytest.fixture
def embedding_job(tmp_path: Path) -> Path:
    """The file of a job whose teacher, a fake one, says one of 64 vectors of 16 features of each image."""
    import numpy as np
    import yaml

    np.save(tmp_path / "images.npy", np.random.default_rng(0).random((400, 1, 4, 4)).astype(np.float32) * 40)
    settings = {
        "corpus": {"kind": "arrays", "urls": ["images.npy"]},
        "views": {"kind": "arrays", "shape": [1, 4, 4]},
        "teacher": {"kind": "fake", "size": 16, "positions": "single"},
        "store": {"url": "store", "heads": {"logits": {"kind": "codebooks", "bytes": 8, "pilot": 400}}},
        "train": {"output": "student", "model": {"kind": "mlp", "hidden": [8]}, "steps": 2, "batch_rows": 4},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path


def test_embeddings_are_labelled_by_codebooks_that_are_learned_first_and_never_again(
    embedding_job: Path, decant: Decant
) -> None:
    import numpy as np

    planned = decant(embedding_job, "plan", "job.yaml")
    assert planned.exit_code == 0, planned.output
    assert "codebooks of the head logits: 8 bytes a vector, learned from 320 vectors" in planned.stdout
    assert "on 80 others" in planned.stdout
    assert "16 classes, codebooks (size 16, count 8)" in planned.stdout
    assert "codebooks of the logits, learned: 7 of 8" in planned.stderr
    labelled = decant(embedding_job, "label", "job.yaml")
    assert labelled.exit_code == 0, labelled.output
    assert "learned" not in labelled.output
    report = json.loads(decant(embedding_job, "inspect", "store", "--json", "--entries", "4").stdout)
    (target,) = report["rows"][0]["heads"]["logits"]
    assert len(target["values"]) == 4
    assert target["norm"] >= np.linalg.norm(target["values"])
    assert report["progress"]["statistics"]["logits.cosine"] > 0.99
    drawn = decant(embedding_job, "inspect", "store").stdout
    assert f"{target['values'][0]:.4g}" in drawn
    assert "the first values" in drawn
    assert max(map(len, drawn.splitlines())) < 300
    assert decant(embedding_job, "audit", "job.yaml").exit_code == 0
    assert decant(embedding_job, "repair", "job.yaml").exit_code == 0
    assert decant(embedding_job, "train", "job.yaml").exit_code == 0


def test_a_budget_of_an_embedding_head_becomes_a_codec_a_table_and_a_picture(
    embedding_job: Path, decant: Decant
) -> None:
    wanted = ("plan", "job.yaml", "--pilot", "400")
    run = decant(embedding_job, *wanted, "--budget", "10B", "--plot", "pilot.svg")
    assert run.exit_code == 0, run.stderr
    lines = [line.replace("→", "").split() for line in run.stdout.splitlines()]
    assert lines[0][:3] == ["codec", "bytes", "cosine"]
    names = [" ".join(line[:2]) for line in lines[1:5]]
    assert names == ["embedding float16", "embedding int8", "codebooks 16", "codebooks 8"]
    assert [float(line[2]) for line in lines[1:5]] == [32, 20, 16, 8]
    assert all(float(line[3]) > 0.99 for line in lines[1:5])
    assert "→ codebooks 8" in run.stdout
    assert '\'store.heads.logits={"kind": "codebooks", "bytes": 8}\'' in run.stdout
    assert "<svg" in (embedding_job / "pilot.svg").read_text()
    assert not (embedding_job / "store").exists()
    none = decant(embedding_job, *wanted, "--budget", "4B")
    assert none.exit_code == 2
    assert "no codec is within the budget and the error" in none.stderr
