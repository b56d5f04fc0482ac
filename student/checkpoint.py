"""Checkpoints on a disk that all ranks see, whole or not there, whatever is killed when.

A checkpoint is a directory `step-00000100`:

    model.safetensors   the student, as it is evaluated: all that its users need
    training/           the tensors that the run goes on from, in safetensors too, a file for each rank's
                        parts; they can be read into tensors of any other sharding
    state.json          numbers: the step, the reader's position
    train.json          the run's configuration

It is written beside, made durable and renamed; then the links `best` and `last` are swapped. Nothing of it is
unpickled. Knows nothing of what it holds.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from pipeline.targets.durable import sync
from pipeline.targets.errors import ConfigError, DecantError
from student.distributed import World, whole

STATE_VERSION = 2
LEAVING_SECONDS = 5.0
"""How long a run that was killed may take to be gone."""


@contextmanager
def alone(output: Path) -> Iterator[None]:
    """While entered, no other run enters this directory; a run that is killed has left it.

    Raises ConfigError while another one is there. File systems without locks let all in.
    """
    output.mkdir(parents=True, exist_ok=True)
    with (output / "lock").open("a+") as file:
        give_up = time.monotonic() + LEAVING_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up:
                    file.seek(0)
                    raise ConfigError(
                        f"another run trains into {output} ({file.read()}): wait for it, stop it, or choose "
                        "another output"
                    ) from None
                time.sleep(0.1)
            except OSError:
                break
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield


@dataclass(frozen=True)
class Checkpoint:
    """One that was read. state: what `save` was given; config: of the run that wrote it."""

    path: Path
    state: Mapping[str, Any]
    config: Mapping[str, Any]

    def load(self, model: nn.Module) -> None:
        """The student's weights into the model. Raises ConfigError when they are of another one."""
        with self._fitting():
            load_model(model, self.path / "model.safetensors")

    def resume(self, tensors: Mapping[str, Tensor], world: World) -> None:
        """What the run goes on from into these tensors, in place; every rank has to ask.

        Raises ConfigError when one is missing or has another shape.
        """
        reader = HuggingFaceStorageReader(str(self.path / "training"))
        with self._fitting(), _alone():
            load(dict(tensors), storage_reader=reader, no_dist=world.size == 1)

    @contextmanager
    def _fitting(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ValueError, SafetensorError, OSError, CheckpointException) as error:
            for file in sorted(self.path.rglob("*.safetensors")):
                _check_whole(file)
            reason = str(error).strip().splitlines()[-1]
            raise ConfigError(
                f"the weights of {self.path} do not fit the configured model: {reason}"
            ) from error


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, directory: Path, world: World) -> None:
        self.directory, self.world = directory, world

    def save(
        self,
        step: int,
        model: Mapping[str, Tensor],
        training: Mapping[str, Tensor],
        state: Mapping[str, Any],
        config: Mapping[str, Any],
        best: bool,
        accompany: Callable[[Path], None],
    ) -> Path:
        """Write one, make it `last` (and `best`), and remove those that are neither; its directory.

        model: whole, used of rank 0 only. accompany: writes what else belongs beside the
        weights. Every rank has to save.
        """
        final = self.directory / f"step-{step:08d}"
        work = self.directory / f".{final.name}.partial"
        first = self.world.rank == 0
        if first:
            self.directory.mkdir(parents=True, exist_ok=True)
            for stray in self.directory.glob(".*"):
                _remove(stray)
            work.mkdir()
        self.world.wait()
        writer = HuggingFaceStorageWriter(str(work / "training"), save_distributed=True)
        with _alone():
            save(dict(training), storage_writer=writer, no_dist=self.world.size == 1)
        if first:
            save_file(dict(model), work / "model.safetensors", {"format": "pt"})
            (work / "state.json").write_text(json.dumps({"version": STATE_VERSION, **state}))
            (work / "train.json").write_text(json.dumps(config, indent=1))
            accompany(work)
            for path in [*work.iterdir(), work]:  # each rank has made its own files in training/ durable
                sync(path)
            self._publish(work, final, best)
        self.world.wait()
        return final

    def _publish(self, work: Path, final: Path, best: bool) -> None:
        if final.exists():  # a run was killed before it was linked, and this one repeats the step
            final.rename(self.directory / f".replaced-{final.name}")
        work.rename(final)
        sync(self.directory)
        # `last` after `best`: killed between the two, the run repeats this step and sets both.
        for name in ("best", "last") if best else ("last",):
            link = self.directory / f".{name}"
            link.unlink(missing_ok=True)
            link.symlink_to(final.name)
            link.replace(self.directory / name)
        sync(self.directory)
        kept = {(self.directory / name).resolve() for name in ("last", "best")}
        for other in [*self.directory.glob("step-*"), *self.directory.glob(".*")]:
            if other.resolve() not in kept:
                _remove(other)

    def read(self, name: str = "last") -> Checkpoint | None:
        """The checkpoint of that name, None if there is none. Raises DecantError if it cannot be read."""
        path = (self.directory / name).resolve()
        return read(path) if path.exists() else None


def read(path: Path) -> Checkpoint:
    """The checkpoint in that directory. Raises DecantError if it cannot be read."""
    try:
        state = json.loads((path / "state.json").read_text())
        config = json.loads((path / "train.json").read_text())
    except (OSError, ValueError) as error:
        raise DecantError(
            f"the checkpoint {path} cannot be read ({error}): remove it to start anew"
        ) from error
    if not isinstance(state, dict) or state.get("version") != STATE_VERSION:
        version = state.get("version") if isinstance(state, dict) else None
        raise ConfigError(
            f"the checkpoint {path} has version {version!r}, this Decant reads "
            f"{STATE_VERSION}: resume with the release that wrote it"
        )
    return Checkpoint(path, state, config)


def _check_whole(file: Path) -> None:
    """Raises DecantError for a file of tensors that is damaged: then the model is not at fault."""
    try:
        with safe_open(file, "pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise DecantError(
            f"{file} is damaged ({error}): remove its checkpoint to start anew, or restore it from a copy"
        ) from error


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of a model's parameters and buffers by name, whole and in memory; of tied ones the first name.

    Every rank has to ask.
    """
    return {
        name: whole(tensor.detach()).to("cpu", copy=True).contiguous()
        for name, tensor in named(model).items()
    }


def named(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a model by name, themselves; of tied ones the first name."""
    state = model.state_dict(keep_vars=True)
    names: dict[int, str] = {}
    for name, tensor in state.items():
        names.setdefault(id(tensor), name)
    return {name: state[name] for name in names.values()}


@contextmanager
def _alone() -> Iterator[None]:
    """Without torch's warning that a process alone saves or reads alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path)


def training_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights and the optimiser's moments by name, themselves and not copies: what `save` is given as
    training and `resume` fills.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    tensors = {f"model.{name}": tensor for name, tensor in named(model).items()}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{names[parameter]}.{key}"] = value
    return tensors
