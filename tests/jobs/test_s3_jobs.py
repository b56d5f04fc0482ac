"""A job whose store is on S3: killed, refused, without credentials; the same command finishes it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.targets import Store
from tests.jobs.small_jobs import SmallJob
from tests.s3.ceph import Ceph
from tests.s3.proxy import EXPIRED, INTERNAL_ERROR, SLOW_DOWN, Answer, Network, Proxy, Request

Place = tuple[str, dict[str, Any]]
Faulty = tuple[Proxy, Place, Place]
Decant = Callable[..., Any]


def on(small_job: SmallJob, place: Place, **options: Any) -> str:
    """The job's file, with its store there."""
    small_job.settings["store"] |= {"url": place[0], "options": {**place[1], **options}}
    return str(small_job.file)


def check(place: Place, units: int) -> None:
    """All units are in the store, once, and whole."""
    store = Store.open(*place)
    commits = list(store.commits())
    assert len(commits) == len({commit.unit for commit in commits}) == units
    verification = store.verify()
    assert verification.problems == ()
    assert verification.missing_units == 0


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(INTERNAL_ERROR, id="500", marks=pytest.mark.slow),
        pytest.param(SLOW_DOWN, id="SlowDown", marks=pytest.mark.slow),
        pytest.param(EXPIRED, id="expired"),
        pytest.param(Answer(403, "AccessDenied"), id="denied", marks=pytest.mark.slow),
    ],
)
def test_what_does_not_pass_is_one_sentence_and_the_same_command_finishes_later(
    faulty: Faulty, small_job: SmallJob, decant: Decant, fault: Answer
) -> None:
    proxy, through, direct = faulty
    once = {"retries": {"total_max_attempts": 1}, "connect_timeout": 1, "read_timeout": 1}
    job = on(small_job, through, config_kwargs=once)
    commits = 0

    def after_one(request: Request) -> Answer | None:
        nonlocal commits
        commits += request.puts("commits")
        return fault if commits > 1 else None

    proxy.rule = after_one
    failed = decant(small_job.folder, "label", job)
    assert failed.exit_code == 1
    sentence = failed.stderr.strip().splitlines()[-1]
    assert "the store s3://decant/" in sentence
    if fault is EXPIRED:
        assert "the credentials have expired: renew them, then run the same command again" in failed.stderr
    assert "Traceback" not in failed.stderr
    proxy.rule = lambda request: None
    assert decant(small_job.folder, "label", job).exit_code == 0
    check(direct, 3)


def test_a_job_goes_through_a_storm_of_faults(faulty: Faulty, small_job: SmallJob, decant: Decant) -> None:
    proxy, through, direct = faulty
    storm = iter(
        [SLOW_DOWN, Network.RESET_UPLOAD, Network.LOST_ANSWER, INTERNAL_ERROR, Network.RESET_DOWNLOAD] * 6
    )
    count = 0

    def every_third(request: Request) -> Any:
        nonlocal count
        count += 1
        return next(storm, None) if count % 3 == 0 else None

    proxy.rule = every_third
    labelled = decant(small_job.folder, "label", on(small_job, through))
    assert labelled.exit_code == 0, labelled.stderr
    assert len(proxy.met) >= 10
    check(direct, 3)


@pytest.mark.parametrize(
    "place",
    [
        pytest.param("s3_bucket_url", marks=pytest.mark.slow),
        pytest.param("ceph_bucket_url", marks=pytest.mark.ceph),
    ],
)
def test_killed_half_way_and_resumed_a_job_is_labelled_verified_and_trained_from(
    request: pytest.FixtureRequest, small_job: SmallJob, place: str
) -> None:
    where = request.getfixturevalue(place)
    (small_job.folder / "corpus" / "long.txt").write_text("A long tale of ducks, geese and swans. " * 200)
    small_job.settings["corpus"]["unit_bytes"] = 60
    small_job.settings["teacher"]["seconds_per_view"] = 0.01
    job = on(small_job, where)
    command = [sys.executable, "-m", "jobs.cli", "label", job]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=small_job.folder, env=environment, stderr=subprocess.PIPE, start_new_session=True
    )
    committed: set[str] = set()
    while process.poll() is None and not committed:
        if Store.exists(*where):
            committed = Store.open(*where).committed()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    store = Store.open(*where)
    kept = {commit.unit: commit.attempt for commit in store.commits()}
    assert 0 < len(kept) < store.planned_count()

    for words in (("label", job), ("verify", job), ("train", job)):
        ended = small_job.run(*words)
        assert ended.returncode == 0, ended.stderr
    check(where, store.planned_count())
    final = {commit.unit: commit.attempt for commit in Store.open(*where).commits()}
    assert kept.items() <= final.items()


@pytest.mark.ceph
def test_a_server_that_loses_power_costs_no_unit(
    ceph: Ceph, ceph_bucket_url: Place, small_job: SmallJob
) -> None:
    small_job.settings["corpus"]["unit_bytes"] = 60
    small_job.settings["teacher"]["seconds_per_view"] = 0.05
    job = on(small_job, ceph_bucket_url)
    assert small_job.run("plan", job).returncode == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", "label", job],
        cwd=small_job.folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    store = Store.open(*ceph_bucket_url)
    while process.poll() is None and not store.committed():
        time.sleep(0.02)
    kept = store.committed()
    ceph.kill()
    time.sleep(1.0)
    ceph.start()
    _, said = process.communicate()
    assert process.returncode == 0, said  # it has waited
    assert kept <= store.committed()
    check(ceph_bucket_url, store.planned_count())
