"""Floating-point operations: how many a piece of training does, and the most that a device does in a second.

Knows torch and nothing of training.
"""

from __future__ import annotations

import functools
import re
import time

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

DENSE_BFLOAT16 = {
    "A100": 312e12,
    "B200": 2250e12,
    "GH200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "L40S": 362e12,
    "L4": 121e12,
}
"""FLOP/s with bfloat16 and without sparsity, from the makers' data sheets, by words of the device's
name; the first that fit count.
"""

MEASURED_SIDE = 768
"""Side of the matrices that are multiplied on devices that no table has."""


def counter() -> FlopCounterMode:
    """While entered, counts what matrix products, convolutions and attention do.

    A multiplication and an addition are two. What a hand-written kernel does is not seen.
    """
    on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # which torch forgets
    return FlopCounterMode(display=False, custom_mapping={on_cpu: _attention})


def _attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def peak(device: torch.device, dtype: torch.dtype) -> float:
    """The most FLOP/s of a device for matrix products in that dtype, with the threads that torch may use.

    From the table for bfloat16 on accelerators that it knows, else measured: the best of some products.
    """
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for words, flops in DENSE_BFLOAT16.items():
            if re.search(rf"\b{words}\b", name):
                return flops
    return _measured(device, dtype, torch.get_num_threads())


@functools.cache
def _measured(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    side = MEASURED_SIDE if device.type == "cpu" else 8 * MEASURED_SIDE
    factor = torch.ones(side, side, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(4):
        begun = time.perf_counter()
        float((factor @ factor)[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - begun)
    return 2 * side**3 / best
