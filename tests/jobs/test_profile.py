"""What `decant label --profile` says: the shares, the timeline, and whom it blames."""

import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from jobs.profile import Reading
from pipeline.profile import STAGES, Profile
from tests.jobs.small_jobs import SmallJob


def steady(seconds: int, **shares: float) -> Profile:
    """Stages that worked the same share of every second."""
    return Profile(
        {stage: dict.fromkeys(range(100, 100 + seconds), share) for stage, share in shares.items()}
    )


def text(reading: Reading) -> str:
    console = Console(file=io.StringIO(), width=110)
    for part in reading.render():
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("shares", "idle", "blamed"),
    [
        ({"teacher": 0.9, "encode": 0.08, "views": 0.5}, 0.02, "The teacher is the limit"),
        ({"teacher": 0.3, "encode": 0.65}, 0.05, "Encoding is the limit"),
        ({"teacher": 0.3, "encode": 0.1, "views": 0.98, "read": 0.4}, 0.6, '"render views" keeps it waiting'),
        ({"teacher": 0.3, "encode": 0.1, "write": 0.7}, 0.6, '"write shards" keeps it waiting'),
        ({"teacher": 0.3, "encode": 0.1, "write": 0.1}, 0.6, "too few units"),
    ],
)
def test_the_stage_that_the_device_waits_for_is_blamed(
    shares: dict[str, float], idle: float, blamed: str
) -> None:
    reading = Reading(steady(20, **shares), replicas=1)
    assert reading.idle == pytest.approx(idle)
    assert blamed in text(reading)
    assert f"idle {idle:.0%}" in text(reading)


def test_what_preprocessing_actors_do_is_measured_by_their_cpus_and_cured_by_more_of_them() -> None:
    shares = {"teacher": 0.3, "encode": 0.1, "views": 1.9, "read": 0.2, "receive": 0.1, "write": 0.5}
    limited = Reading(steady(20, **shares), replicas=1, preprocessing_cpus=2.0)
    assert (
        '"render views" keeps it waiting, at work 95% of the time: set label.preprocess' in limited.verdict()
    )
    assert "render views (elsewhere)" in text(limited)
    ample = Reading(steady(20, **shares), replicas=1, preprocessing_cpus=8.0)
    assert '"write shards" keeps it waiting' in ample.verdict()
    del shares["receive"]
    by_itself = Reading(steady(20, **shares), replicas=1, preprocessing_cpus=8.0)
    assert "at work 190% of the time: set label.batching.threads" in by_itself.verdict()
    assert "receive" not in text(by_itself)


def test_two_replicas_that_work_by_turns_idle_half_of_the_time() -> None:
    profile = Profile({"teacher": {100: 1.0, 101: 1.0}})
    assert Reading(profile, 1).idle == 0
    assert Reading(profile, 2).idle == pytest.approx(0.5)


def test_the_timeline_shows_when_a_stage_worked() -> None:
    profile = Profile({"teacher": {100: 1.0, 103: 0.5}, "write": {103: 0.0}})
    assert Reading(profile, 1).timeline("teacher") == "█  ▄"
    long = Reading(Profile({"teacher": {100: 1.0, 1099: 1.0}}), 1).timeline("teacher")
    assert len(long) == 40


def test_label_with_profile_ends_with_the_table(small_job: SmallJob, decant: Callable[..., Any]) -> None:
    small_job.file.touch()
    done = decant(small_job.folder, "label", "job.yaml", "--profile")
    assert done.exit_code == 0, done.output
    for name in ("read corpus", "render views", "teacher's forward", "encode targets", "write shards"):
        assert name in done.output
    assert "waits for input" in done.output
    assert "The device was idle" in done.output


def test_every_stage_has_a_name() -> None:
    for stage in STAGES:
        assert text(Reading(steady(1, **{stage: 1.0}), 1))
