"""A replica's memory is bounded by what the job says, not by how large shards and records are."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.job import LabelJob
from pipeline.prepare import prepare
from pipeline.targets.storage import PART_BYTES

pytestmark = pytest.mark.slow

MakeJob = Callable[..., LabelJob]
MIB = 2**20

LABEL = """
import re, sys
from pipeline.job import LabelJob
from pipeline.label import Labeller
from pipeline.targets.store import Store

def memory(name):
    return int(re.search(rf"{name}:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

job = LabelJob.model_validate_json(open(sys.argv[1]).read())
units = Store.open(job.store.url, job.store.options).planned()
small, large = sorted(units, key=lambda unit: unit.size_bytes)
labeller = Labeller(job)
labeller.label(small)  # what libraries take once
before = memory("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak is counted from here
labeller.label(large)
print(memory("VmHWM") - before)
"""


def growth(job: LabelJob, folder: Path) -> int:
    """Bytes that the process of a replica grows by while it labels the larger of two units, at its peak."""
    path = folder / "job.json"
    path.write_text(job.model_dump_json())
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    ended = subprocess.run(
        [sys.executable, "-c", LABEL, str(path)], capture_output=True, text=True, env=environment, check=True
    )
    return int(ended.stdout)


def corpus(folder: Path, records: int, words: int) -> None:
    """Two files of JSON lines, each a unit: a small one, and one of so many records of so many words."""
    folder.mkdir()
    for name, count, length in (("a", 20, 100), ("b", records, words)):
        with gzip.open(folder / f"{name}.jsonl.gz", "wt", 1) as file:
            for i in range(count):
                text = " ".join(f"w{(i * 7 + j * j) % 90}" for j in range(length))
                file.write(json.dumps({"text": text}) + "\n")


@pytest.mark.parametrize("place", ["local", "s3"])
def test_ten_times_larger_shards_and_records_do_not_need_ten_times_the_memory(
    make_job: MakeJob, tmp_path: Path, place: str, request: pytest.FixtureRequest
) -> None:
    grown = {}
    for name, records, words in (("plain", 50, 500), ("shard", 500, 500), ("records", 50, 5000)):
        corpus(tmp_path / name, records, words)
        job = make_job(
            corpus={"kind": "jsonl", "urls": [str(tmp_path / name)], "unit_bytes": 1},
            store=f"store of {name}",
            teacher={"size": 128},
            heads={"logits": {"kind": "dense", "dtype": "float32"}},
            label={"batching": {"budget": 1024, "window": 2}},
        )
        views = job.views.model_copy(update={"length": 128})
        where: dict[str, Any] = {}
        if place == "s3":
            url, options = request.getfixturevalue("s3_bucket_url")
            where = {"url": f"{url}/{name}", "options": options}
        job = job.model_copy(update={"views": views, "store": job.store.model_copy(update=where)})
        assert prepare(job).planned_count() == 2
        grown[name] = growth(job, tmp_path)
    # The rows of ten times the text, as arrays; a part of the upload is held, and once more while it is sent.
    whole = 500 * 499 * 128 * 4
    bound = 48 * MIB + (2 * PART_BYTES if place == "s3" else 0)
    assert whole > bound
    assert max(grown.values()) < bound, grown
