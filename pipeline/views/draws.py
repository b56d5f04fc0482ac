"""The random numbers of one view: a function of its name alone, on every machine and release.

NumPy promises the raw bits of Philox for good, but not what its Generator makes of them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class Draws:
    """Numbers one after the other. name: whose they are, such as seed, record key and number of a view."""

    def __init__(self, *name: int | str) -> None:
        text = json.dumps(name, ensure_ascii=True, separators=(",", ":"))
        digest = hashlib.blake2b(text.encode(), digest_size=16, person=b"view").digest()
        self._bits = np.random.Philox(key=np.frombuffer(digest, dtype="<u8").astype(np.uint64))

    def fraction(self) -> float:
        """Uniform in [0, 1)."""
        return (int(self._bits.random_raw()) >> 11) / 2**53

    def below(self, count: int) -> int:
        """An integer from 0 to count - 1."""
        return int(self.fraction() * count)

    def between(self, low: float, high: float) -> float:
        """Uniform in [low, high)."""
        return low + (high - low) * self.fraction()

    def choose(self, choices: Sequence[T]) -> T:
        """One of them."""
        return choices[self.below(len(choices))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """All of them, in a random order (Fisher and Yates)."""
        out = list(items)
        for last in range(len(out) - 1, 0, -1):
            other = self.below(last + 1)
            out[last], out[other] = out[other], out[last]
        return out

    def beta(self, alpha: float) -> float:
        """Of the distribution Beta(alpha, alpha), for alpha of at most 1 (Jöhnk 1964)."""
        while True:
            # As logarithms: a small alpha takes both powers below the smallest float.
            x, y = (math.log1p(-self.fraction()) / alpha for _ in range(2))
            most = max(x, y)
            total = most + math.log(math.exp(x - most) + math.exp(y - most))
            if total <= 0:
                return math.exp(x - total)
