"""Several students of one store: a grid over the keys of `train`, the configurations it makes, what came out.

Knows neither how they are trained nor how that is shown.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.config import load_train
from jobs.document import parse
from pipeline.targets.errors import ConfigError
from student.config import OWN, TrainConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 1000
"""Students of a grid; more is most likely a mistake."""


@dataclass(frozen=True)
class Candidate:
    """A student of the grid. settings: its values of the grid's keys."""

    name: str
    settings: dict[str, Any]
    config: TrainConfig


@dataclass(frozen=True)
class Result:
    """What became of a student. loss: on held-out targets; hard_loss, accuracy: on held-out labels, if any;
    failed: why it has none of them.
    """

    name: str
    settings: dict[str, Any]
    parameters: int
    loss: float | None = None
    hard_loss: float | None = None
    accuracy: float | None = None
    failed: str | None = None

    @property
    def judged(self) -> float | None:
        """What students are compared by, lower is better: the labels' loss, without labels the targets'."""
        return self.loss if self.hard_loss is None else self.hard_loss


def candidates(job: Path, grid: Path, overrides: Sequence[str] = ()) -> list[Candidate]:
    """Every combination of the grid's values, each a `train` section with an output below the job's.

    grid: a YAML mapping of keys of `train` ("model.width") to lists of values. Raises ConfigError that names
    the file and the key, or the student.
    """
    values = _grid(grid)
    found: dict[str, Candidate] = {}
    for combination in itertools.product(*values.values()):
        settings = dict(zip(values, combination, strict=True))
        name = _name(settings)
        changes = [f"train.{key}={json.dumps(value)}" for key, value in settings.items()]
        try:
            config = load_train(job, [*overrides, *changes])
        except ConfigError as error:
            raise ConfigError(f"{grid}, student {name}: {error}") from error
        if name in found:
            raise ConfigError(f"{grid}: two students would be called {name}: are two values the same?")
        output = str(Path(config.output) / name)
        found[name] = Candidate(name, settings, config.model_copy(update={"output": output}))
    return list(found.values())


def passes(students: Sequence[Candidate], at_once: int | None) -> list[list[Candidate]]:
    """Those that can share a pass over the data together, at most so many; in the order given."""
    alike: dict[str, list[Candidate]] = {}
    for student in students:
        alike.setdefault(student.config.model_dump_json(exclude=set(OWN)), []).append(student)
    return [
        group[first : first + (at_once or len(group))]
        for group in alike.values()
        for first in range(0, len(group), at_once or len(group))
    ]


def written(results: Sequence[Result]) -> str:
    """All of it, as JSON."""
    return json.dumps([asdict(result) for result in results], indent=1) + "\n"


def figure(results: Sequence[Result]) -> Figure:
    """Size against loss: students that differ in their model alone are one line. Needs matplotlib."""
    from matplotlib.figure import Figure

    lines: dict[str, list[Result]] = {}
    for result in results:
        others = {key: value for key, value in result.settings.items() if key.split(".")[0] != "model"}
        lines.setdefault(_name(others) if others else "", []).append(result)
    drawing = Figure(figsize=(7, 4.5), layout="constrained")
    axis = drawing.subplots()
    for label, line in lines.items():
        points = sorted((r.parameters, r.judged) for r in line if r.judged is not None)
        axis.plot([size for size, _ in points], [loss for _, loss in points], "o-", label=label)
    hard = any(result.hard_loss is not None for result in results)
    what = "cross-entropy on held-out labels, nats" if hard else "loss on held-out targets"
    axis.set(xscale="log", xlabel="parameters", ylabel=what)
    axis.grid(alpha=0.3, which="both")
    if any(lines):
        axis.legend()
    return drawing


def _grid(path: Path) -> dict[str, list[Any]]:
    try:
        data = parse(path.read_text("utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if not isinstance(data, dict) or not data:
        raise ConfigError(
            f"{path}: must map keys of train to lists of values, such as model.width: [64, 128]"
        )
    for key, values in data.items():
        if key.split(".")[0] in ("output", "store"):
            raise ConfigError(
                f"{path}: {key}: all students of a sweep share the store, and `output` holds them"
            )
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{path}: {key}: must be a list of values")
    number = 1
    for values in data.values():
        number *= len(values)
    if number > MOST:
        raise ConfigError(f"{path}: makes {number:,} students, more than {MOST:,}: shorten its lists")
    return data


def _name(settings: dict[str, Any]) -> str:
    """A name for people and for a directory: the last words of the keys, and the values."""
    parts = [f"{key.split('.')[-1]}={_said(value)}" for key, value in settings.items()]
    return re.sub(r"[^\w.=,+-]+", "-", ",".join(parts)).strip("-")


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return "+".join(_said(item) for item in value.values())
    if isinstance(value, list):
        return "x".join(_said(item) for item in value)
    return str(value)
