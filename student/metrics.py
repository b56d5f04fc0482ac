"""Where a run's events are kept: one JSON object a line, and TensorBoard. Knows nothing of training."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from pipeline.targets.errors import ConfigError
from student.events import Event


class Metrics:
    """Appends events to `metrics.jsonl` of a directory.

    step: where the run goes on. What an interrupted run told of later steps happens again and is removed.
    Raises ConfigError if TensorBoard is asked for and not installed.
    """

    def __init__(self, directory: Path, step: int, tensorboard: bool) -> None:
        path = directory / "metrics.jsonl"
        directory.mkdir(parents=True, exist_ok=True)
        kept = [line for line in _lines(path) if json.loads(line)["step"] <= step] if step else []
        beside = path.with_name(f".{path.name}")
        beside.write_text("".join(kept))
        os.replace(beside, path)
        self._board = _summary_writer(directory / "tensorboard", step) if tensorboard else None
        self._file = path.open("a", buffering=1)

    def write(self, event: Event) -> None:
        """Keep it. On disk at once, so that a killed run has told what it did."""
        data = {"event": type(event).__name__.lower(), **dataclasses.asdict(event)}
        self._file.write(json.dumps(data, default=str) + "\n")
        if self._board is not None:
            for name, value in {**data, **(data.get("score") or {})}.items():
                if isinstance(value, float):
                    self._board.add_scalar(f"{data['event']}/{name}", value, event.step)

    def close(self) -> None:
        """Nothing more comes."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def _lines(path: Path) -> list[str]:
    """The whole lines of the file: a kill may have cut the last one."""
    if not path.exists():
        return []
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def _summary_writer(directory: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            'tensorboard: true needs its package: pip install "decant-kd[tensorboard]"'
        ) from error
    return SummaryWriter(str(directory), purge_step=step + 1 if step else None)
