"""What others store of a distribution, and at how many bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pipeline.pilot import Point
from pipeline.targets.decoded import TopKTargets

RECOMMENDED = {"k": 128, "exact_k": 16, "polynomial_terms": [0, 1, 2, 3, 4, "sqrt"]}
DISTILLKIT: dict[str, dict[str, Any]] = {
    "recommended": RECOMMENDED,
    "recommended, normalize_t": {**RECOMMENDED, "normalize_t": True},
    "budget": {"k": 50, "exact_k": 1, "polynomial_terms": [0, 1, "sqrt"]},
}
"""As DistillKit's README gives them."""


def rskd_bytes(point: Point) -> float:
    """Of a target of Random Sampling KD as its paper counts: for a unique token 17 bits of id, 7 of count."""
    return 3 * point.entries


class DistillKit:
    """Its own compressor, there and back; `bytes` is what its arrays took of a target, on average."""

    def __init__(self, size: int, settings: dict[str, Any]) -> None:
        """Raises ImportError unless its package is on the path."""
        from distillkit.compression import (  # type: ignore[import-not-found]
            DistributionQuantizationConfig,
            LogprobCompressor,
        )

        fixed = {
            "exact_dtype": "bfloat16",
            "term_dtype": "float32",
            "residual_bins": [],
            "delta_encoding": False,
        }
        self._compressor = LogprobCompressor(DistributionQuantizationConfig(d=size, **fixed, **settings))
        self._size = size
        self._sizes: list[float] = []

    @property
    def bytes(self) -> float:
        return float(np.mean(self._sizes))

    def __call__(self, logits: torch.Tensor) -> TopKTargets:
        """logits: [n, V]."""
        stored = self._compressor.compress(torch.log_softmax(logits, dim=-1))
        self._sizes.append(sum(array.nbytes for array in stored.values()) / len(logits))
        ids, log_probs = self._compressor.decompress_to_sparse(stored)
        log_probs = log_probs.double().clamp(max=0)
        left = (1 - log_probs.exp().sum(dim=-1, keepdim=True)).clamp(min=0)
        return TopKTargets(
            ids.long().numpy(), log_probs.float().numpy(), (1.0,), left.log().float().numpy(), self._size
        )
