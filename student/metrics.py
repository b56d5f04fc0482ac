"""Where a run's events are kept: one JSON object a line, and in trackers. Knows nothing of training."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from types import TracebackType

from student import trackers
from student.config import TrainConfig
from student.events import Event, Failed


class Metrics:
    """Appends events to `metrics.jsonl` of the run's output, and tells the trackers their numbers.

    step: where the run goes on. What an interrupted run told of later steps happens again and is removed.
    Left with an exception, or after an event Failed, the run counts as failed for the trackers.
    Raises ConfigError for a tracker that is asked for and not installed.
    """

    def __init__(self, config: TrainConfig, step: int) -> None:
        directory = Path(config.output)
        path = directory / "metrics.jsonl"
        directory.mkdir(parents=True, exist_ok=True)
        kept = [line for line in _lines(path) if json.loads(line)["step"] <= step] if step else []
        beside = path.with_name(f".{path.name}")
        beside.write_text("".join(kept))
        os.replace(beside, path)
        self._trackers = [trackers.MAKERS[name](config, directory, step) for name in config.trackers]
        self._file = path.open("a", buffering=1)
        self._failed = False

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        for tracker in self._trackers:
            tracker.close(self._failed or kind is not None)

    def write(self, event: Event) -> None:
        """Keep it. On disk at once, so that a killed run has told what it did."""
        self._failed = self._failed or isinstance(event, Failed)
        data = {"event": type(event).__name__.lower(), **dataclasses.asdict(event)}
        self._file.write(json.dumps(data, default=str) + "\n")
        numbers = {
            f"{data['event']}/{name}": value
            for name, value in {**data, **(data.get("score") or {})}.items()
            if isinstance(value, float)
        }
        for tracker in self._trackers if numbers else ():
            tracker.tell(numbers, event.step)


def _lines(path: Path) -> list[str]:
    """The whole lines of the file: a kill may have cut the last one."""
    if not path.exists():
        return []
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
