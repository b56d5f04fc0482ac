"""How large a batch a teacher is fastest with, tried on real views.

It knows batches and a loaded teacher, and nothing of stores. Larger batches use a device better until it is
full; from there on they only take memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from pipeline.batching import Window, batches
from pipeline.inference import Answer, Inference
from pipeline.targets.spec import Input

GAIN = 1.03
"""Speed over the speed of half the size, from which on it is worth the memory."""

TIMES = 2
"""A batch of each size is asked so often after it is warm; the fastest counts."""


def fastest(
    inference: Inference, window: Window, inputs: Sequence[Input], budget: int, packing: int | None = None
) -> int:
    """The budget to go on with: `budget`, doubled as long as that makes the teacher faster.

    Tried on the window's longest views, so what fits now will fit. It ends where memory runs out, where a
    view fails, or where the window has no more views. packing: see `batches`.
    """
    best = _speed(inference, window, inputs, budget, packing)
    total = sum(item.content.size for item in window.items)
    while best and 2 * budget <= total:
        speed = _speed(inference, window, inputs, 2 * budget, packing)
        if speed < GAIN * best:
            break
        budget, best = 2 * budget, speed
    return budget


def _speed(
    inference: Inference, window: Window, inputs: Sequence[Input], budget: int, packing: int | None
) -> float:
    """Of the budget used up a second, by the window's first batch; 0 if it has to be cut or a view fails."""
    part = next(islice(batches(window, inputs, budget, packing), 1), None)
    if part is None:
        return 0.0
    seconds = []
    for _ in range(1 + TIMES):
        answers = list(inference(part))
        if len(answers) != 1 or not isinstance(answers[0], Answer):
            return 0.0
        seconds.append(answers[0].seconds())
    return part.size / max(min(seconds[1:]), 1e-9)
