"""Checkpoints on local disk that are whole or not there, whatever is killed when.

A checkpoint is a directory `step-00000100` with `model.safetensors`, `state.pt` (optimiser, reader, step;
read with weights_only=True) and `config.json`. It is written beside, made durable and renamed; then the links
`best` and `last` are swapped. Knows nothing of what it holds.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from pipeline.targets.errors import ConfigError, DecantError

STATE_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """One that was read. state: what `save` was given; config: of the run that wrote it."""

    path: Path
    state: Mapping[str, Any]
    config: Mapping[str, Any]

    def load(self, model: nn.Module) -> None:
        """Its weights into the model. Raises ConfigError when they are of another one."""
        try:
            load_model(model, self.path / "model.safetensors")
        except (RuntimeError, SafetensorError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"the weights of {self.path} do not fit the configured model: {reason}"
            ) from error


class Checkpoints:
    """The checkpoints of one run. Only one process may save."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def save(
        self, step: int, model: nn.Module, state: Mapping[str, Any], config: Mapping[str, Any], best: bool
    ) -> Path:
        """Write one, make it `last` (and `best`), and remove those that are neither; its directory."""
        final = self.directory / f"step-{step:08d}"
        work = self.directory / f".{final.name}.{os.getpid()}"
        self.directory.mkdir(parents=True, exist_ok=True)
        for stray in self.directory.glob(".*"):
            _remove(stray)
        work.mkdir()
        save_model(model, str(work / "model.safetensors"))
        torch.save({"version": STATE_VERSION, **state}, work / "state.pt")
        (work / "config.json").write_text(json.dumps(config, indent=1))
        for file in work.iterdir():
            _sync(file)
        _sync(work)
        if final.exists():  # a run was killed before it was linked, and this one repeats the step
            final.rename(self.directory / f".replaced-{final.name}")
        work.rename(final)
        _sync(self.directory)
        # `last` after `best`: killed between the two, the run repeats this step and sets both.
        for name in ("best", "last") if best else ("last",):
            link = self.directory / f".{name}"
            link.unlink(missing_ok=True)
            link.symlink_to(final.name)
            link.replace(self.directory / name)
        _sync(self.directory)
        kept = {(self.directory / name).resolve() for name in ("last", "best")}
        for other in [*self.directory.glob("step-*"), *self.directory.glob(".*")]:
            if other.resolve() not in kept:
                _remove(other)
        return final

    def read(self, name: str = "last") -> Checkpoint | None:
        """The checkpoint of that name, None if there is none. Raises DecantError if it cannot be read."""
        path = (self.directory / name).resolve()
        return read(path) if path.exists() else None


def read(path: Path) -> Checkpoint:
    """The checkpoint in that directory. Raises DecantError if it cannot be read."""
    try:
        state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
        config = json.loads((path / "config.json").read_text())
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise DecantError(
            f"the checkpoint {path} cannot be read ({error}): remove it to start anew"
        ) from error
    if state.get("version") != STATE_VERSION:
        raise ConfigError(
            f"the checkpoint {path} has version {state.get('version')!r}, this Decant reads "
            f"{STATE_VERSION}: resume with the release that wrote it"
        )
    return Checkpoint(path, state, config)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path)
