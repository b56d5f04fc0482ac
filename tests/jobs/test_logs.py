"""A run's log is one JSON object a line, whatever happens, and holds no credential."""

from __future__ import annotations

import json
import logging
import signal
from collections.abc import Callable
from typing import Any

import pytest

from jobs.logs import EventLog
from pipeline.targets.store import Store
from tests.jobs.test_progress import EVENTS, UNIT

Decant = Callable[..., Any]


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_run_logs_each_unit_with_its_attempt_replica_and_duration(small_job: Any, decant: Decant) -> None:
    result = decant(small_job.folder, "label", str(small_job.file), "--log-format", "json")
    assert result.exit_code == 0, result.output
    logged = lines(result.stderr)
    assert [line["event"] for line in logged] == [
        "labelling",
        "replica_started",
        *["unit_committed"] * 3,
        "ended",
    ]
    commits = {commit.unit: commit for commit in Store.open(str(small_job.store)).commits()}
    for line in logged[2:5]:
        commit = commits.pop(line["unit"])
        assert (line["attempt"], line["records"], line["targets"]) == (
            commit.attempt,
            commit.records,
            commit.targets,
        )
        assert line["replica"] == 0
        assert line["seconds"] > 0
        assert line["level"] == "info"
        assert line["time"].endswith("Z")
    assert not commits
    assert (logged[-1]["status"], logged[-1]["committed"]) == ("complete", 3)
    assert "labelled: 3 records in 3 units" in result.stdout
    assert logging.getLogger().handlers == [] or not any(
        type(handler.formatter).__name__ == "JsonFormatter" for handler in logging.getLogger().handlers
    )


def test_a_mistake_and_a_failure_are_lines_too_and_keep_their_exit_codes(
    small_job: Any, decant: Decant
) -> None:
    small_job.settings["teacher"]["raise_on"] = 32
    small_job.settings["label"] = {"max_quarantined": 0}
    failed = decant(small_job.folder, "label", str(small_job.file), "--log-format", "json")
    assert failed.exit_code == 1
    assert lines(failed.stderr)[-1]["event"] == "ended"
    assert "failures in" in lines(failed.stderr)[-1]["error"]
    small_job.settings["corpus"]["urls"] = ["nowhere"]
    mistaken = decant(small_job.folder, "label", str(small_job.file), "--log-format", "json")
    assert mistaken.exit_code == 2
    (line,) = lines(mistaken.stderr)
    assert (line["event"], line["status"], line["level"]) == ("ended", "failed", "error")
    assert "nowhere" in line["error"]


@pytest.mark.slow
def test_a_signal_is_a_line_and_the_end_says_stopped(small_job: Any) -> None:
    for number in range(10):
        (small_job.folder / "corpus" / f"{number:02}.txt").write_text("The owl flies at night. " * 16)
    small_job.settings["teacher"]["seconds_per_view"] = 0.1
    with small_job.logging() as (process, log):
        assert next(line for line in log if line["event"] == "unit_committed")
        process.send_signal(signal.SIGTERM)
        rest = list(log)
        assert process.wait(60) == 1
    assert [line["signal"] for line in rest if line["event"] == "draining"] == ["SIGTERM"]
    assert rest[-1]["status"] == "stopped"
    assert 0 < rest[-1]["labelled"] == rest[-1]["committed"] < rest[-1]["planned"] == 13


def test_failures_and_losses_have_levels_ids_and_reasons(capsys: Any) -> None:
    with EventLog(lambda text: text.replace("killed", "***")) as log:
        for event in EVENTS:
            log.on(event)
    logged = {line["event"]: line for line in lines(capsys.readouterr().err)}
    assert logged["unit_failed"]["unit"] == UNIT.id
    assert logged["unit_failed"]["attempts"] == 1
    assert logged["unit_failed"]["error"] == "the disk hiccuped"
    assert logged["unit_failed"]["level"] == logged["replica_lost"]["level"] == "warning"
    assert logged["replica_lost"]["error"] == "***"


def test_what_libraries_log_is_a_line_with_its_traceback(capsys: Any) -> None:
    with EventLog(lambda text: text.replace("hunter2", "***")):
        try:
            raise ValueError("the password is hunter2")
        except ValueError:
            logging.getLogger("somebody").exception("it\nfailed with %s", "hunter2")
        logging.getLogger("somebody").info("of no interest")
    (line,) = lines(capsys.readouterr().err)
    assert (line["event"], line["logger"], line["level"]) == ("log", "somebody", "error")
    assert line["message"] == "it\nfailed with ***"
    assert "ValueError: the password is ***" in line["traceback"]
