"""Where a teacher computes, and how a batch gets there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.targets.errors import UserError

if TYPE_CHECKING:
    import torch


def device_of(name: str) -> torch.device:
    """ "auto" is the first CUDA device that this process sees, else the CPU. Raises UserError."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"teacher.device {name!r} cannot be used here: {reason}") from error


def tensor(array: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """The array on the device. Token ids become int64, as embeddings ask; other types stay.

    To a CUDA device it is copied from pinned memory, so that nobody waits for what is computed there.
    """
    import torch

    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    elif not array.flags.writeable:
        array = array.copy()  # torch shares the memory and warns that it could write
    host = torch.from_numpy(array)
    return (host.pin_memory() if device.type == "cuda" else host).to(device, non_blocking=True)
