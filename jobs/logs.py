"""A run as structured logs: one JSON object a line on standard error, for machines that collect them.

It knows the engine's events and how they become records of `logging`; what libraries log becomes lines too.
"""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.engine.base import Event

LOGGER = logging.getLogger("decant")


class JsonFormatter(logging.Formatter):
    """A record as one line: time (UTC), level, event or logger and message, and the fields of the event."""

    def __init__(self, redact: Callable[[str], str]) -> None:
        super().__init__()
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        """Every text in it went through `redact`."""
        moment = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
        }
        if record.name == LOGGER.name:
            line["event"] = record.getMessage()
        else:
            line.update(event="log", logger=record.name, message=record.getMessage())
        line.update(getattr(record, "fields", {}))
        if record.exc_info and record.exc_info[1] is not None:
            line["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))
        return json.dumps(self._clean(line), ensure_ascii=False, default=str)

    def _clean(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._redact(value)
        if isinstance(value, dict):
            return {key: self._clean(item) for key, item in value.items()}
        return [self._clean(item) for item in value] if isinstance(value, list | tuple) else value


class EventLog:
    """While entered, everything that is logged is a JSON line; `on` logs the engine's events."""

    def __init__(self, redact: Callable[[str], str]) -> None:
        self._formatter = JsonFormatter(redact)
        self._before: tuple[list[logging.Handler], int, int] = ([], 0, 0)

    def __enter__(self) -> EventLog:
        root = logging.getLogger()
        handler = logging.StreamHandler()
        handler.setFormatter(self._formatter)
        self._before = (root.handlers, root.level, LOGGER.level)
        root.handlers = [handler]
        root.setLevel(logging.WARNING)
        LOGGER.setLevel(logging.INFO)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        root = logging.getLogger()
        root.handlers, level, ours = self._before
        root.setLevel(level)
        LOGGER.setLevel(ours)

    def say(
        self, event: str, level: int = logging.INFO, failure: BaseException | None = None, **fields: Any
    ) -> None:
        """One line. failure: an exception whose traceback it holds."""
        LOGGER.log(level, event, exc_info=failure, extra={"fields": fields})

    def warn(self, error: str) -> None:
        """A line of what went wrong and does not stop the run."""
        self.say("warning", logging.WARNING, error=error)

    def on(self, event: Event) -> None:
        """Takes one event of the engine."""
        from pipeline.engine import base

        match event:
            case base.ReplicaPending(replica=replica):
                self.say("replica_pending", replica=replica)
            case base.Started(replica=replica, pid=pid, node=node):
                self.say("replica_started", replica=replica, pid=pid, node=node)
            case base.ReplicaLost(replica=replica, pid=pid, reason=reason):
                self.say("replica_lost", logging.WARNING, replica=replica, pid=pid, error=reason)
            case base.PreprocessorStarted(preprocessor=number, pid=pid, node=node):
                self.say("preprocessor_started", preprocessor=number, pid=pid, node=node)
            case base.PreprocessorLost(preprocessor=number, pid=pid, reason=reason):
                self.say("preprocessor_lost", logging.WARNING, preprocessor=number, pid=pid, error=reason)
            case base.Committed(commit=commit, replica=replica, seconds=seconds):
                self.say(
                    "unit_committed",
                    unit=commit.unit,
                    attempt=commit.attempt,
                    replica=replica,
                    seconds=round(seconds, 3),
                    forward_seconds=round(commit.forward_seconds, 3),
                    records=commit.records,
                    targets=commit.targets or commit.rows,
                    shard_bytes=commit.shard_bytes,
                    failures=commit.failures,
                    device=commit.device,
                )
            case base.Failed(unit=unit, reason=reason, attempts=attempts, given_up=given_up):
                level = logging.ERROR if given_up else logging.WARNING
                self.say(
                    "unit_failed", level, unit=unit.id, attempts=attempts, given_up=given_up, error=reason
                )
