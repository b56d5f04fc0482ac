"""What is shown of a run adds up, on a terminal and elsewhere; a signal drains and a second one aborts."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from jobs.progress import Display, LabelView, Work
from jobs.signals import Drain
from pipeline.engine.base import Committed, Event, Failed, ReplicaLost, ReplicaPending, Started
from pipeline.targets.commit import Commit, quarantine_name, shard_name
from pipeline.targets.unit import Slice, Unit

UNIT = Unit((Slice("corpus/a", 0, 9, 9, "x"),), 9)


def committed(number: int) -> Committed:
    unit, attempt = f"{number:032x}", "0" * 16
    return Committed(
        Commit(
            unit=unit,
            attempt=attempt,
            shard=shard_name(unit, attempt),
            shard_bytes=2000,
            shard_sha256="0" * 64,
            records=10,
            rows=20,
            targets=400,
            quarantined=3,
            failures=2,
            quarantine=quarantine_name(unit, attempt),
            quarantine_sha256="0" * 64,
            spec_fingerprint="0" * 32,
            statistics={},
            histograms={},
            started=0.0,
            finished=1.0,
            forward_seconds=1.0,
            device="cpu",
        ),
        0,
        1.0,
    )


EVENTS: list[Event] = [
    ReplicaPending(0),
    ReplicaPending(1),
    ReplicaPending(2),
    Started(0, 1, "here"),
    Started(1, 2, "here"),
    committed(1),
    Failed(UNIT, "the disk hiccuped", 1, given_up=False),
    ReplicaLost(1, 2, "killed"),
    committed(2),
]


def test_the_facts_add_up() -> None:
    view = LabelView("labelling", planned=10, committed=3, target="tokens")
    assert view.seconds_left() is None
    for event in EVENTS:
        view.on(event)
    facts = dict(view.facts())
    assert facts["units"] == "5 of 10"
    assert facts["replicas"] == "1 and 1 pending"
    assert facts["quarantined"] == "4"
    assert facts["bytes/token"] == "5.0"
    records, tokens = view.rates()
    assert tokens == pytest.approx(40 * records, rel=0.01)
    assert view.messages == [
        f"unit {UNIT.id[:12]} failed (attempt 1): the disk hiccuped",
        "replica 1 lost: killed",
    ]


def test_the_time_left_follows_the_pace_of_this_run() -> None:
    view = LabelView("labelling", planned=10, committed=3, target="tokens")
    for event in EVENTS:
        view.on(event)
    view.began -= 2000
    assert view.seconds_left() == pytest.approx(5000, rel=0.05)  # 1000 seconds a unit, 5 units left


@pytest.mark.parametrize("terminal", [True, False])
def test_a_display_ends_with_the_last_state(terminal: bool) -> None:
    view = LabelView("labelling", planned=5, committed=3, target="tokens")
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=100, _environ={})
    with Display(view, console, seconds=0.05):
        for event in EVENTS:
            view.on(event)
        while not terminal and "units 5 of 5" not in text.getvalue():
            time.sleep(0.01)
    shown = text.getvalue()
    assert "5 of 5" in shown
    assert "replica 1 lost: killed" in shown
    assert ("\x1b" in shown) == terminal
    if not terminal:
        assert shown.count("replica 1 lost: killed") == 1
        assert shown.count("units 5 of 5") >= 2


@pytest.mark.parametrize(
    ("unit", "said"),
    [
        ("units", "verified 30 of 50 units, 2.0 units/s, 10 s left"),
        ("bytes", "verified 30 B of 50 B, 2 B/s, 10 s left"),
        ("", "verified 30 of 50, 2.0/s, 10 s left"),
    ],
)
def test_work_says_its_rate_and_the_time_left_without_what_an_earlier_run_did(unit: str, said: str) -> None:
    work = Work("verified", 0, unit, done=10, first="opening")
    assert work.line() == "verified: opening"
    work.at(10, 50)
    assert work.line().endswith("opening, unknown left")
    work.add(20)
    work.began -= 10
    assert work.line() == said


def test_nothing_is_drawn_without_a_console() -> None:
    with Display(LabelView("labelling", 1, 0, "tokens"), None) as display:
        assert display is not None


def test_the_first_signal_asks_the_second_interrupts_and_the_old_handlers_return() -> None:
    before = signal.getsignal(signal.SIGTERM)
    asked: list[str] = []
    with Drain(asked.append) as drain:
        os.kill(os.getpid(), signal.SIGTERM)
        assert drain.stop.wait(60)
        assert asked == ["SIGTERM"]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert asked == ["SIGTERM"]
    assert signal.getsignal(signal.SIGTERM) == before


def start_slow(job: Any) -> subprocess.Popen[str]:
    """`decant label` on many slow units, once the first of them is committed."""
    for number in range(10):
        (job.folder / "corpus" / f"{number:02}.txt").write_text("The owl flies at night. " * 16)
    job.settings["teacher"]["seconds_per_view"] = 0.1
    with open(job.folder / "stderr", "w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs.cli", "label", str(job.file)],
            cwd=job.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    until(lambda: any((job.store / "commits").glob("*.json")), process)
    return process


def until(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Waits for it while the process lives."""
    deadline = time.monotonic() + 120
    while True:
        ended = process.poll() is not None
        if happened():
            return
        assert not ended
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "signals", "code"),
    [
        ("local", [signal.SIGTERM], 1),
        ("local", [signal.SIGINT, signal.SIGINT], 130),
        ("ray", [signal.SIGTERM], 1),
        ("ray", [signal.SIGINT, signal.SIGINT], 130),
    ],
)
def test_a_stopped_run_says_what_is_left_and_the_same_command_finishes_it(
    small_job: Any, decant: Callable[..., Any], engine: str, signals: list[signal.Signals], code: int
) -> None:
    small_job.settings["label"] = {"engine": engine}
    process = start_slow(small_job)
    process.send_signal(signals[0])
    said = small_job.folder / "stderr"
    until(lambda: "letting the units in flight finish" in said.read_text(), process)
    for number in signals[1:]:
        process.send_signal(number)
    out, _ = process.communicate(timeout=120)
    err = said.read_text()
    assert process.returncode == code, err
    assert "Traceback" not in err
    if code == 1:
        assert "SIGTERM: letting the units in flight finish" in err
        assert "of 13 units are labelled" in out
        assert "To go on: decant label" in out
    else:
        assert "the same command goes on" in err
    assert decant(small_job.folder, "verify", "store").exit_code == 0

    small_job.settings["label"] = {"engine": "local"}
    small_job.settings["teacher"]["seconds_per_view"] = 0
    finished = decant(small_job.folder, "label", str(small_job.file))
    assert finished.exit_code == 0, finished.stderr
    assert "labelled: 13 records in 13 units" in finished.stdout
    verified = decant(small_job.folder, "verify", "store")
    assert verified.exit_code == 0
    assert "0 planned units are not labelled yet" in verified.stdout


def test_a_reader_that_goes_away_is_no_error(small_job: Any, tmp_path: Path) -> None:
    command = f"{sys.executable} -m jobs.cli config schema | head -1; exit ${{PIPESTATUS[0]}}"
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert run.stdout == "{\n"
    assert run.stderr == ""
