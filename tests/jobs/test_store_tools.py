"""audit, stats, repair and merge from the command line: what they print, and with which code they leave."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from jobs.cli import app
from tests.jobs.small_jobs import SmallJob, make_small_job

Decant = Callable[..., Any]


def label(job: SmallJob) -> SmallJob:
    """Three units of one file each, by a codec with a tail."""
    job.settings["store"]["heads"]["logits"] = {"kind": "threshold", "threshold": 0.1}
    with contextlib.chdir(job.folder):
        assert CliRunner().invoke(app, ["label", str(job.file)]).exit_code == 0
    return job


@pytest.fixture
def labelled(small_job: SmallJob) -> SmallJob:
    """The small job, labelled."""
    return label(small_job)


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory, tokenizer_directory: Path) -> SmallJob:
    """The same for all tests that only look at it."""
    return label(make_small_job(tmp_path_factory.mktemp("untouched"), tokenizer_directory))


def shards(job: Any) -> list[Path]:
    return sorted((job.folder / "store" / "shards").rglob("*.parquet"))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_an_honest_store_passes_the_audit(untouched: SmallJob, decant: Decant) -> None:
    result = decant(untouched.folder, "audit", str(untouched.file), "--rows", "12")
    assert result.exit_code == 0, result.output
    assert "nothing is wrong in 12 rows of 3 units" in result.stdout
    for check in ("spec", "shard", "inputs", "distribution", "values", "place", "bias"):
        assert f"\n{check}" in result.stdout
    assert "100.0% of" in result.stdout
    assert "audited 12 of 12 rows" in result.stderr
    data = json.loads(decant(untouched.folder, "audit", str(untouched.file), "--rows", "12", "--json").stdout)
    assert data["findings"] == []
    assert data["false_alarm"] == 1e-6
    assert data["checked"]["values"] == data["heads"][0]["targets"] == data["heads"][0]["equal"] > 100


def test_a_finding_is_a_sentence_and_leaves_with_1(labelled: Any, decant: Decant) -> None:
    flip(shards(labelled)[0])
    unit = shards(labelled)[0].name.partition("-")[0]
    result = decant(labelled.folder, "audit", str(labelled.file))
    assert result.exit_code == 1
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("shard: ")]
    assert line.startswith(f"shard: unit {unit[:12]}: shard shards/")
    assert "has not the bytes that were committed" in line
    assert "the store is not what it says" in result.stdout
    found = decant(labelled.folder, "audit", str(labelled.file), "--json")
    assert found.exit_code == 1
    (finding,) = json.loads(found.stdout)["findings"]
    assert (finding["check"], finding["unit"]) == ("shard", unit)
    assert finding["sentence"]
    other = decant(labelled.folder, "audit", str(labelled.file), "teacher.seed=1", "store.url=store")
    assert other.exit_code == 1
    assert "spec: the job's and the store's differ in teacher" in other.stdout
    assert "another teacher, or other weights" in other.stdout


def test_an_audit_of_nothing_is_refused(small_job: Any, decant: Decant) -> None:
    job = str(small_job.file)
    assert decant(small_job.folder, "audit", job).exit_code == 2
    assert decant(small_job.folder, "plan", job).exit_code == 0
    result = decant(small_job.folder, "audit", job)
    assert result.exit_code == 2
    assert "nothing is labelled in" in result.stderr


def test_stats_say_what_a_store_is_made_of(untouched: SmallJob, decant: Decant) -> None:
    drawn = decant(untouched.folder, "stats", "store")
    assert drawn.exit_code == 0, drawn.output
    for said in (
        "tokens",
        "entries",
        "perplexity",
        "logits.tail_",
        "in.tokens",
        "per second of forward pass",
    ):
        assert said in drawn.stdout
    deep = json.loads(decant(untouched.folder, "stats", str(untouched.file), "--deep", "--json").stdout)
    few = json.loads(decant(untouched.folder, "stats", "store", "--shards", "1", "--json").stdout)
    none = json.loads(decant(untouched.folder, "stats", "store", "--shards", "0", "--json").stdout)
    assert deep["sampled"]["shards"] == deep["sampled"]["of"] == few["sampled"]["of"] == 3
    assert (few["sampled"]["shards"], none["sampled"]["shards"]) == (1, 0)
    assert none["columns"] == []
    assert none["heads"]["logits"]["entries"]["percentiles"] is None
    assert deep["targets"] == few["targets"] == none["targets"] > 300
    assert sum(item["bytes"] for item in deep["columns"]) == deep["shard_bytes"]
    assert deep["shard_bytes"] == sum(path.stat().st_size for path in shards(untouched))
    head = deep["heads"]["logits"]
    spread = [
        head["entries"]["percentiles"][name] for name in ("1", "5", "25", "50", "75", "95", "99", "100")
    ]
    assert spread == sorted(spread)
    assert spread[0] <= head["entries"]["mean"] <= spread[-1]
    assert head["perplexity"] == pytest.approx(2.718281828 ** head["label_nll"])
    assert sum(device["targets"] for device in deep["devices"].values()) == deep["targets"]


def test_stats_count_entries_as_they_are_stored(untouched: SmallJob, decant: Decant) -> None:
    import numpy as np

    from pipeline.targets.store import Store

    store = Store.open(str(untouched.folder / "store"))
    counts = np.concatenate(
        [
            np.diff(rows.decode("logits").offsets)  # type: ignore[union-attr]
            for commit in store.commits()
            for rows in store.read(commit)
        ]
    )
    found = json.loads(decant(untouched.folder, "stats", "store", "--deep", "--json").stdout)
    entries = found["heads"]["logits"]["entries"]
    assert entries["mean"] == pytest.approx(counts.mean())
    for percent, value in entries["percentiles"].items():
        expected = np.percentile(counts, int(percent), method="inverted_cdf")
        assert value == expected


def test_repair_labels_the_damaged_units_again_and_no_other(labelled: Any, decant: Decant) -> None:
    job = str(labelled.file)
    whole = decant(labelled.folder, "repair", job)
    assert whole.exit_code == 0
    assert "nothing to repair" in whole.stdout
    before = {path: path.read_bytes() for path in shards(labelled)}
    damaged = shards(labelled)[1]
    flip(damaged)
    result = decant(labelled.folder, "repair", job)
    assert result.exit_code == 0, result.output
    assert damaged.name in result.stdout
    assert "1 units labelled again and verified" in result.stdout
    assert decant(labelled.folder, "verify", "store").exit_code == 0
    assert decant(labelled.folder, "gc", "store", "--grace", "0").exit_code == 0
    after = {path: path.read_bytes() for path in shards(labelled)}
    assert {path for path in before if path in after} == set(before) - {damaged}
    assert sorted(after.values()) == sorted(before.values())
    assert not list((labelled.folder / "store" / "repair").iterdir())


@pytest.mark.slow
def test_a_repair_killed_at_any_moment_goes_on(labelled: Any) -> None:
    """kill -9 while it labels, at several moments; the units that were never damaged keep their files."""
    folder, job = labelled.folder, str(labelled.file)
    before = {path: path.read_bytes() for path in shards(labelled)}
    for path in list(before)[:2]:
        flip(path)
    words = [sys.executable, "-m", "jobs.cli", "repair", job, "teacher.seconds_per_view=0.4"]
    for moment in (0.0, 0.3, 1.0):
        deadline = time.monotonic() + 120
        process = subprocess.Popen(words, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"})
        while process.poll() is None and not list(folder.glob("store/repair/*")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(moment)
        process.kill()
        process.wait()
    assert list(folder.glob("store/repair/*"))
    result = labelled.run("repair", job)
    assert result.returncode == 0, result.stderr
    assert labelled.run("verify", "store").returncode == 0
    assert labelled.run("gc", "store", "--grace", "0").returncode == 0
    after = {path: path.read_bytes() for path in shards(labelled)}
    assert sorted(after.values()) == sorted(before.values())
    assert set(before) & set(after) == set(list(before)[2:])
    assert not list(folder.glob("store/repair/*"))


def test_repair_with_another_teacher_touches_nothing(labelled: Any, decant: Decant) -> None:
    flip(shards(labelled)[0])
    result = decant(labelled.folder, "repair", str(labelled.file), "teacher.seed=1")
    assert result.exit_code == 2
    assert "repair with the job that made it" in result.stderr
    assert decant(labelled.folder, "verify", "store").exit_code == 1
    again = decant(labelled.folder, "label", str(labelled.file))
    assert again.exit_code == 0
    assert decant(labelled.folder, "verify", "store").exit_code == 1  # it was never taken out


def test_repair_names_what_it_cannot_label_again(labelled: Any, decant: Decant) -> None:
    flip(shards(labelled)[0])
    for path in (labelled.folder / "corpus").iterdir():
        path.write_text("something else")
    result = decant(labelled.folder, "repair", str(labelled.file))
    assert result.exit_code == 1
    assert "cannot be labelled again" in result.stdout
    assert "no longer the one that was planned" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["join", "average"])
def test_two_stores_are_merged(labelled: Any, decant: Decant, mode: str) -> None:
    job = str(labelled.file)
    assert decant(labelled.folder, "label", job, "store.url=other", "teacher.seed=1").exit_code == 0
    result = decant(labelled.folder, "merge", "merged", "store", "other", "--mode", mode)
    assert result.exit_code == 0, result.output
    assert "merged 3 units" in result.stdout
    assert decant(labelled.folder, "verify", "merged").exit_code == 0
    report = json.loads(decant(labelled.folder, "inspect", "merged", "--json", "--rows", "1").stdout)
    heads = {"join": {"store_logits", "other_logits"}, "average": {"logits"}}[mode]
    assert set(report["rows"][0]["heads"]) == heads
    tar = decant(
        labelled.folder, "merge", "tar", "store", "other", "--mode", mode, "--container", "webdataset"
    )
    assert tar.exit_code == 0, tar.output
    assert list((labelled.folder / "tar" / "shards").rglob("*.tar"))
    head = f"train.head={sorted(heads)[0]}"
    assert decant(labelled.folder, "train", job, "train.store.url=merged", head).exit_code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["merged", "store"], "two stores or more"),
        (["merged", "store", "store"], "different names"),
        (["merged", "store", "store", "--name", "a", "--name", "b/c"], "letters and digits"),
        (["merged", "store", "nowhere"], "no store at"),
    ],
)
def test_a_merge_that_makes_no_sense_is_refused(
    untouched: SmallJob, decant: Decant, words: list[str], said: str
) -> None:
    result = decant(untouched.folder, "merge", *words)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (untouched.folder / "merged").exists()
