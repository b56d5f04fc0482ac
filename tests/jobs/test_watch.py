"""A job is followed from its store alone: it shows what the store holds, and ends with its plan."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.totals import Totals
from jobs.watching import Watched
from pipeline.targets.commit import Commit, commit_name, shard_name
from pipeline.targets.store import Store

Decant = Callable[..., Any]


@pytest.mark.slow
def test_a_running_job_is_followed_to_its_end(small_job: Any, decant: Decant) -> None:
    small_job.settings["teacher"]["seconds_per_view"] = 0.02
    (small_job.folder / "corpus" / "broken.txt").write_bytes(b"\xff\xfe\xfa not a text")
    small_job.settings["label"] = {"max_quarantined": 0.5, "replicas": {"units_in_flight": 1}}
    assert decant(small_job.folder, "plan", str(small_job.file)).exit_code == 0
    early = decant(small_job.folder, "watch", "store", "--once")
    assert early.exit_code == 1
    assert "0 of 4" in early.stdout
    assert "none yet" in early.stdout

    command = [sys.executable, "-m", "jobs.cli", "label", str(small_job.file)]
    said = small_job.folder / "stderr.txt"
    with (
        open(said, "w") as stderr,
        subprocess.Popen(
            command, cwd=small_job.folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=stderr
        ) as labelling,
    ):
        result = decant(small_job.folder, "watch", "store", "--json", "--every", "0.1")
        assert labelling.wait(120) == 0, said.read_text()
    assert result.exit_code == 0, result.output
    states = [json.loads(line) for line in result.stdout.splitlines()]
    done = [state["units"]["committed"] for state in states]
    assert done == sorted(done)
    assert [state["complete"] for state in states] == [number == 4 for number in done]
    last, totals = states[-1], Totals.of(Store.open(str(small_job.store)).commits())
    assert last["units"] == {"planned": 4, "committed": 4}
    assert (last["records"], last["tokens"], last["shard_bytes"]) == (
        totals.records,
        totals.targets,
        totals.shard_bytes,
    )
    assert last["bytes_per_target"] == totals.bytes_per_target
    (device,) = last["devices"]
    assert device.startswith("cpu")
    assert last["devices"][device] == 3  # nothing of the fourth reached a device
    assert last["seconds_left"] == 0
    assert last["tokens_per_second"] > 0
    assert last["quarantined"]["failures"] == 1
    (reason,) = last["quarantined"]["reasons"]
    assert (reason["code"], reason["count"]) == ("undecodable", 1)

    # On what is no terminal, plain lines; from the manifest now, and through the job file.
    late = decant(small_job.folder, "watch", str(small_job.file))
    assert late.exit_code == 0
    assert "units 4 of 4" in late.stderr
    assert "1 undecodable" in late.stdout
    assert f"{device}: 3 units" in late.stdout


def test_a_store_that_is_not_there_is_a_users_mistake(decant: Decant, tmp_path: Path) -> None:
    result = decant(tmp_path, "watch", "nowhere")
    assert result.exit_code == 2
    assert "there is no store at" in result.stderr


@pytest.fixture
def store(small_job: Any, decant: Decant) -> Store:
    """Planned: three units of nothing labelled."""
    assert decant(small_job.folder, "plan", str(small_job.file)).exit_code == 0
    return Store.open(str(small_job.store))


def commit(store: Store, unit: str, started: float, finished: float) -> Commit:
    """A record as a labeller on another machine would leave it: 10 records, 400 tokens, 2,000 bytes."""
    made = Commit(
        unit=unit,
        attempt="0" * 16,
        shard=shard_name(unit, "0" * 16),
        shard_bytes=2000,
        shard_sha256="0" * 64,
        records=10,
        rows=20,
        targets=400,
        quarantined=0,
        failures=0,
        quarantine=None,
        quarantine_sha256=None,
        spec_fingerprint=store.spec.fingerprint,
        statistics={},
        histograms={},
        started=started,
        finished=finished,
        forward_seconds=1.0,
        device="cuda: H100",
    )
    store.storage.put_if_absent(commit_name(unit), made.to_json())
    return made


def test_rates_are_of_late_and_the_time_left_follows_them(store: Store) -> None:
    now = time.time()
    first, second, third = (unit.id for unit in store.planned())
    commit(store, first, now - 5000, now - 4000)  # long ago: counted, and in no rate
    commit(store, second, now - 150, now - 50)
    watched = Watched(store, window_seconds=100)
    watched.look()
    state = watched.state()
    assert state["units"] == {"planned": 3, "committed": 2}
    assert state["bytes_per_target"] == 5
    assert state["units_per_second"] == pytest.approx(0.01, rel=0.05)
    assert state["records_per_second"] == pytest.approx(0.1, rel=0.05)
    assert state["tokens_per_second"] == pytest.approx(4, rel=0.05)
    assert state["units_in_flight"] == pytest.approx(0.5, rel=0.1)
    assert state["seconds_left"] == pytest.approx(100, rel=0.05)
    assert state["seconds_since_commit"] == pytest.approx(50, abs=5)
    # The clocks of the labellers may be ahead of this machine's.
    commit(store, third, now + 900, now + 1000)
    watched.look()
    assert watched.state()["units_in_flight"] == pytest.approx(1, rel=0.01)
    assert watched.complete


def test_units_taken_out_are_counted_out(store: Store) -> None:
    ids = [unit.id for unit in store.planned()]
    for unit in ids:
        commit(store, unit, time.time() - 1, time.time())
    watched = Watched(store, 100)
    watched.look()
    assert watched.complete
    store.discard(ids[:1])
    watched.look()
    assert watched.state()["units"]["committed"] == 2
    assert watched.state()["records"] == 20
    assert not watched.complete


def test_a_store_of_another_machine_is_read_and_never_written(store: Store, small_job: Any) -> None:
    made = commit(store, next(store.planned()).id, time.time() - 1, time.time())
    before = {path: path.stat().st_mtime_ns for path in small_job.store.rglob("*")}
    watched = Watched(Store.open(store.url), 100)
    watched.look(all_of_it=True)
    assert {path: path.stat().st_mtime_ns for path in small_job.store.rglob("*")} == before
    assert watched.sums["targets"] == dataclasses.asdict(made)["targets"]
