"""The job file: one YAML with everything that labels a corpus and trains a student from the store.

It knows how the sections fit together (a student's store is the job's store unless it says otherwise); what a
key means stands in the section's own class. Relative paths are relative to the current directory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from jobs.document import parse, read, split
from jobs.notify import NotifyConfig
from jobs.problems import MOST, is_secret, sentences
from pipeline.config import Config
from pipeline.job import LabelJob
from pipeline.targets.errors import ConfigError
from pipeline.teachers import AnyTeacher, TeacherConfig
from student.config import StoreLocation, TrainConfig

M = TypeVar("M", bound=BaseModel)


class Job(LabelJob):
    """A job file: `decant plan` and `decant label` read all but `train`, `decant train` reads `train`.

    Relative paths are relative to the current directory, `~/` is the home directory, and environment
    variables are not put in (the shell can: `store.url=$BUCKET/targets` on the command line).
    """

    train: TrainConfig | None = None
    """The student, and how it is trained. Its store is the job's `store` unless it names another."""

    notify: NotifyConfig = NotifyConfig()
    """Who is told when labelling ends."""

    def labelling(self) -> LabelJob:
        """What the labelling side may see: the same without `train` and `notify`."""
        return LabelJob(**{name: getattr(self, name) for name in LabelJob.model_fields})


def load_job(path: str | Path, overrides: Sequence[str] = ()) -> Job:
    """The job of a YAML file with `key.sub=value` overrides. Raises ConfigError that names each problem."""
    data = read(Path(path), overrides)
    if set(data) == {"train"}:
        raise ConfigError(
            f"{path}: has only a train section, so there is nothing to label: add corpus, views, teacher and "
            "store (`decant config example text` shows them)"
        )
    job = _validated(Job, data, str(path), overrides)
    if job.train is None or job.train.store is not None:
        return job
    store = StoreLocation(url=job.store.url, options=job.store.options)
    return job.model_copy(update={"train": job.train.model_copy(update={"store": store})})


def load_train(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """The `train` section of a job file, or of a file that has no other. Raises ConfigError."""
    data = read(Path(path), overrides)
    if "train" not in data:
        raise ConfigError(f"{path}: has no train section: `decant config example text` shows one")
    if set(data) == {"train"}:
        train: TrainConfig | None = _validated(TrainConfig, data["train"], str(path), overrides, ("train",))
    else:
        train = load_job(path, overrides).train
    if train is None:
        raise ConfigError(f"{path}: its train section is empty: `decant config example text` shows one")
    if train.store is None:
        raise ConfigError(f"{path}: train.store: missing (the url of the store to learn from)")
    return train


class _Teacher(Config):
    """A teacher, without the job around it."""

    teacher: AnyTeacher
    """The teacher."""


def load_teacher(text: str) -> TeacherConfig:
    """A teacher from a command line: the directory of a causal language model, or a mapping as in a job.

    Raises ConfigError.
    """
    data = parse(text, "--teacher") if text.lstrip().startswith("{") else {"kind": "causal_lm", "path": text}
    return _validated(_Teacher, {"teacher": data}, "--teacher", ()).teacher


def sections(path: str | Path, overrides: Sequence[str] = ()) -> set[str]:
    """The top keys of a job file: {"train"} alone is a file for a machine that has only a student."""
    return set(read(Path(path), overrides))


def shown(config: BaseModel) -> str:
    """The resolved configuration as YAML, defaults and all, without credentials."""
    return yaml.safe_dump(_masked(config.model_dump(mode="json"), ()), sort_keys=False, allow_unicode=True)


def _validated(
    model: type[M], data: object, name: str, overrides: Sequence[str], prefix: tuple[str, ...] = ()
) -> M:
    try:
        # As JSON, and strictly: "5" is no number and true is no 1, while a list may still become a tuple.
        return model.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        problems = sentences(error, model, prefix)
    given = [".".join(split(override)[0]) for override in overrides]
    lines = []
    for problem in problems[:MOST]:
        path = problem.partition(": ")[0]
        by_hand = any(_inside(path, key) or _inside(key, path) for key in given)
        lines.append(f"{'command line' if by_hand else name}: {problem}")
    if len(problems) > MOST:
        lines.append(f"and {len(problems) - MOST} more")
    raise ConfigError("\n".join(lines))


def _inside(path: str, other: str) -> bool:
    return path == other or path.startswith(other + ".")


def _masked(value: Any, path: tuple[str, ...]) -> Any:
    if isinstance(value, Mapping):
        return {key: _masked(item, (*path, str(key))) for key, item in value.items()}
    if isinstance(value, list):
        return [_masked(item, path) for item in value]
    if isinstance(value, str):
        return "***" if is_secret(path) else re.sub(r"://[^/@\s]*@", "://***@", value)
    return value
