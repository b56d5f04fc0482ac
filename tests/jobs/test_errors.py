"""What goes wrong on the way is one clear sentence and the promised exit code; the committed stays whole."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Decant = Callable[..., Any]


def sentence(result: Any, code: int) -> str:
    """The one complaint of a command that left with this code."""
    assert result.exit_code == code, result.output
    complaints = [line for line in result.stderr.splitlines() if line.startswith("decant: ")]
    assert len(complaints) == 1, result.stderr
    assert "Traceback" not in result.stderr
    return complaints[0]


def assert_whole(decant: Decant, job: Any) -> None:
    """Everything that is committed verifies."""
    verified = decant(job.folder, "verify", "store")
    assert verified.exit_code == 0, verified.stdout


def committed(job: Any) -> int:
    """Units in the store."""
    from pipeline.targets.store import Store

    return len(Store.open(str(job.store)).committed())


def label_one(decant: Decant, job: Any) -> None:
    """One of the three units is committed."""
    assert decant(job.folder, "plan", str(job.file), "--measure").exit_code == 0
    assert committed(job) == 1


def test_a_wrong_key(small_job: Any, decant: Decant) -> None:
    said = sentence(decant(small_job.folder, "label", str(small_job.file), "label.atempts=3"), 2)
    assert 'label.atempts: unknown key (did you mean "attempts"?)' in said


def test_a_missing_job_file(small_job: Any, decant: Decant) -> None:
    assert "there is no job file jobb.yaml" in sentence(decant(small_job.folder, "label", "jobb.yaml"), 2)


def test_a_missing_corpus(small_job: Any, decant: Decant) -> None:
    small_job.settings["corpus"]["urls"] = ["corpse"]
    assert "corpse" in sentence(decant(small_job.folder, "plan", str(small_job.file)), 2)


def test_a_missing_tokenizer(small_job: Any, decant: Decant) -> None:
    small_job.settings["views"]["tokenizer"] = "nowhere"
    assert "no tokenizer at nowhere" in sentence(decant(small_job.folder, "plan", str(small_job.file)), 2)


def test_a_missing_teacher(small_job: Any, decant: Decant) -> None:
    small_job.settings["teacher"] = {"kind": "causal_lm", "path": "nowhere"}
    assert "nowhere" in sentence(decant(small_job.folder, "plan", str(small_job.file)), 2)


def test_a_corpus_file_that_vanished(small_job: Any, decant: Decant) -> None:
    label_one(decant, small_job)
    (small_job.folder / "corpus" / "swans.txt").unlink()
    said = sentence(decant(small_job.folder, "label", str(small_job.file)), 1)
    assert "swans.txt" in said
    assert_whole(decant, small_job)
    assert committed(small_job) >= 1


def test_a_corpus_file_that_changed(small_job: Any, decant: Decant) -> None:
    label_one(decant, small_job)
    (small_job.folder / "corpus" / "swans.txt").write_text("Something else altogether.")
    said = sentence(decant(small_job.folder, "label", str(small_job.file)), 1)
    assert "swans.txt" in said
    assert "no longer the one that was planned" in said
    assert_whole(decant, small_job)


def test_an_undecodable_record_is_quarantined_within_the_allowance(small_job: Any, decant: Decant) -> None:
    (small_job.folder / "corpus" / "bad.txt").write_bytes(b"caf\xe9 " * 20)
    small_job.settings["label"] = {"max_quarantined": 0.5}
    result = decant(small_job.folder, "label", str(small_job.file))
    assert result.exit_code == 0, result.stderr
    assert "quarantined: 1 failures" in result.stdout
    listed = decant(small_job.folder, "inspect", "store", "--quarantine")
    assert "undecodable  bad.txt" in listed.stdout
    assert_whole(decant, small_job)


def test_more_undecodable_records_than_allowed(small_job: Any, decant: Decant) -> None:
    for number in range(3):
        (small_job.folder / "corpus" / f"bad{number}.txt").write_bytes(b"caf\xe9 " * 20)
    said = sentence(decant(small_job.folder, "label", str(small_job.file)), 1)
    assert "max_quarantined" in said
    assert_whole(decant, small_job)


def test_a_teacher_that_returns_nan(small_job: Any, decant: Decant) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{small_job.settings['views']['tokenizer']}/tokenizer.json")
    small_job.settings["teacher"]["nan_on"] = tokenizer.encode("Swans").ids[0]
    said = sentence(decant(small_job.folder, "label", str(small_job.file)), 1)
    assert "max_quarantined" in said
    assert_whole(decant, small_job)
    small_job.settings["label"] = {"max_quarantined": 0.9}
    assert decant(small_job.folder, "label", str(small_job.file)).exit_code == 0
    assert "non_finite  swans.txt" in decant(small_job.folder, "inspect", "store", "--quarantine").stdout
    assert_whole(decant, small_job)


def test_a_store_made_with_another_codec(small_job: Any, decant: Decant) -> None:
    label_one(decant, small_job)
    small_job.settings["store"]["heads"] = {"logits": {"kind": "topk", "k": 4}}
    said = sentence(decant(small_job.folder, "label", str(small_job.file)), 2)
    assert "topk" in said
    assert "threshold" in said
    assert_whole(decant, small_job)


def test_a_store_made_with_another_teacher(small_job: Any, decant: Decant) -> None:
    label_one(decant, small_job)
    small_job.settings["teacher"]["seed"] = 1
    said = sentence(decant(small_job.folder, "label", str(small_job.file)), 2)
    assert "teacher" in said
    assert_whole(decant, small_job)
    assert committed(small_job) == 1


def test_a_head_that_the_teacher_does_not_have(small_job: Any, decant: Decant) -> None:
    small_job.settings["store"]["heads"] = {"logit": {"kind": "dense"}}
    said = sentence(decant(small_job.folder, "plan", str(small_job.file)), 2)
    assert 'no head "logit" (did you mean "logits"?)' in said


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_shard(small_job: Any, decant: Decant, damage: str) -> None:
    job = str(small_job.file)
    assert decant(small_job.folder, "label", job).exit_code == 0
    shard = sorted((small_job.store / "shards").rglob("*.parquet"))[0]
    data = shard.read_bytes()
    middle = len(data) // 2
    if damage == "missing":
        shard.unlink()
    else:
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        shard.write_bytes(data[:-100] if damage == "truncated" else flipped)

    verified = decant(small_job.folder, "verify", "store")
    assert verified.exit_code == 1
    assert shard.name in verified.stdout
    assert "1 problems" in verified.stdout
    unit = shard.name.split("-")[0]
    assert shard.name in sentence(decant(small_job.folder, "inspect", "store", "--unit", unit), 1)
    small_job.settings["train"]["holdout"] = 0
    assert shard.name in sentence(decant(small_job.folder, "train", str(small_job.file)), 1)

    assert decant(small_job.folder, "verify", "store", "--discard").exit_code == 1
    assert decant(small_job.folder, "label", job).exit_code == 0
    assert_whole(decant, small_job)
    assert committed(small_job) == 3


def test_no_store(small_job: Any, decant: Decant) -> None:
    for command in ("inspect", "verify", "compact", "gc"):
        assert "there is no store at" in sentence(decant(small_job.folder, command, "nowhere"), 2)
    small_job.settings["train"]["store"] = {"url": "nowhere"}
    assert "there is no store at" in sentence(decant(small_job.folder, "train", str(small_job.file)), 2)


def test_the_wrong_tokenizer_for_a_store(small_job: Any, decant: Decant, tmp_path: Path, bpe: Any) -> None:
    label_one(decant, small_job)
    bpe.save(tmp_path / "other")
    said = sentence(decant(small_job.folder, "inspect", "store", "--tokenizer", "other"), 2)
    assert "not the tokenizer that the store's token ids come from" in said


def test_an_unwritable_store(small_job: Any, decant: Decant) -> None:
    (small_job.folder / "file").write_text("in the way")
    small_job.settings["store"]["url"] = "file/store"  # true for root too, whom no permission stops
    assert "file/store" in sentence(decant(small_job.folder, "label", str(small_job.file)), 1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_store_without_permission(small_job: Any, decant: Decant) -> None:
    (small_job.folder / "locked").mkdir(mode=0o500)
    small_job.settings["store"]["url"] = "locked/store"
    assert "locked" in sentence(decant(small_job.folder, "label", str(small_job.file)), 1)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for very little."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk(small_job: Any, decant: Decant, small_disk: Path) -> None:
    small_job.settings["store"]["url"] = str(small_disk / "store")
    small_job.settings["store"]["heads"] = {"logits": {"kind": "dense", "dtype": "float32"}}
    said = sentence(decant(small_job.folder, "label", str(small_job.file)), 1)
    assert "full" in said or "no space" in said
    assert str(small_disk) in said
    assert decant(small_job.folder, "verify", str(small_disk / "store")).exit_code == 0


def test_a_disk_that_takes_no_larger_file(small_job: Any, decant: Decant) -> None:
    small_job.settings["store"]["heads"] = {"logits": {"kind": "dense", "dtype": "float32"}}

    def limit() -> None:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that the write fails, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    result = small_job.run("label", str(small_job.file), preexec_fn=limit)
    assert result.returncode == 1, result.stderr
    complaints = [line for line in result.stderr.splitlines() if line.startswith("decant: ")]
    assert len(complaints) == 1, result.stderr
    assert str(small_job.store) in complaints[0]
    assert_whole(decant, small_job)
    small_job.settings["label"] = {"attempts": 1}
    assert decant(small_job.folder, "label", str(small_job.file)).exit_code == 0
    assert committed(small_job) == 3
