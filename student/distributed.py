"""Who we are among the ranks, sums over them, and a module spread over them.

Knows torch.distributed and nothing of training.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

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

    Alone, a world of one. device: "auto", or a torch device. Raises ConfigError for one that is not there, or
    that has no float64.
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


def spread(module: nn.Module, how: Literal["ddp", "fsdp"], world: World) -> nn.Module:
    """The module to call so that the ranks' gradients are averaged; its parameters stay the module's own.

    fsdp: `fully_shard` of each item of every list of modules (the blocks of a transformer), then of the rest.
    A parameter becomes a DTensor of which a rank holds its part, so an optimiser is made afterwards.
    """
    if world.size == 1:
        return module
    if how == "ddp":
        return DistributedDataParallel(module)
    from torch.distributed.fsdp import fully_shard

    for blocks in [part for part in module.modules() if isinstance(part, nn.ModuleList)]:
        for block in blocks:
            fully_shard(block)
    return cast(nn.Module, fully_shard(module))


@contextmanager
def exchanging(module: nn.Module, wanted: bool) -> Iterator[None]:
    """Whether the backward passes inside exchange gradients: only the last part of a step has to."""
    from torch.distributed.fsdp import FSDPModule

    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(wanted)
    quiet = isinstance(module, DistributedDataParallel) and not wanted
    with module.no_sync() if quiet else nullcontext():  # type: ignore[operator]
        yield


def forget_whole(module: nn.Module) -> None:
    """Weights that a forward pass without a backward pass has left put together: they would miss a change."""
    from torch.distributed.fsdp import FSDPModule

    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def whole(tensor: Tensor) -> Tensor:
    """The tensor, put together from all ranks' parts where it has some: then every rank has to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _device(name: str) -> torch.device:
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        # Apple's has no float64, in which sums over targets are kept.
        name = "cpu" if accelerator is None or accelerator.type == "mps" else accelerator.type
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ:
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.empty(1, dtype=torch.float64, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ConfigError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device
