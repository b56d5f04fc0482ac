"""Who we are among the ranks, and sums over them. Knows torch.distributed and nothing of training."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.targets.errors import ConfigError


@dataclass(frozen=True)
class World:
    """rank of size processes, and the device this one computes on."""

    rank: int
    size: int
    device: torch.device

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def agrees(self, number: int) -> bool:
        """Whether every rank passed the same number."""
        if self.size == 1:
            return True
        extremes = torch.tensor([number, -number], device=self.device)
        dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
        return bool(extremes[0] == -extremes[1])

    def wait(self) -> None:
        """Until every rank is here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def joined(device: str) -> Iterator[World]:
    """The world that torchrun (or whoever set up torch.distributed before) put this process in.

    Alone, a world of one. device: "auto", or a torch device. Raises ConfigError for one that is not there.
    """
    ours = _device(device)
    if dist.is_available() and dist.is_initialized():
        yield World(dist.get_rank(), dist.get_world_size(), ours)
    elif int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("nccl" if ours.type == "cuda" else "gloo")
        try:
            yield World(dist.get_rank(), dist.get_world_size(), ours)
        finally:
            dist.destroy_process_group()
    else:
        yield World(0, 1, ours)


def _device(name: str) -> torch.device:
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        name = accelerator.type if accelerator is not None else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ:
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device
