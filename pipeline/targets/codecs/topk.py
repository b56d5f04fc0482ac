"""Top-k: the k likeliest classes with their log-probabilities, and the mass of everything else.

Knows how to pick, order and measure; the tail's mass is summed from the full logits and never taken as
1 - sum of the head, which loses every digit when the head has nearly all the mass.

The tail's log-mass at an inverse temperature beta, log sum_tail exp(beta log p_i), makes a head plus one
"everything else" bucket right at temperature 1/beta. As a function of beta it is a cumulant generating function:
convex and smooth, so a few betas pin it down between them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from pipeline.targets.codecs.base import Array, Codec, Encoded, Field, NonFiniteLogits, id_dtype
from pipeline.targets.decoded import TopKTargets

if TYPE_CHECKING:
    import torch

DTYPES = {"float16": "<f2", "float32": "<f4"}


@dataclass(frozen=True)
class TopK(Codec):
    """The k largest logits of a target (all of them when k > V), equal ones by ascending id.

    A class that the teacher excludes (-inf) has log-probability -inf, and so has in float16 one below -65504.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "use_attribute_docstrings": True}

    kind: Literal["topk"] = "topk"
    """The k likeliest classes."""

    k: int = 64
    """Classes kept of each target."""

    betas: tuple[float, ...] = (1.0,)
    """Inverse temperatures at which the tail's mass is stored, ascending; 0.5 is temperature 2."""

    dtype: Literal["float16", "float32"] = "float16"
    """How a log-probability is stored."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(float(beta) for beta in self.betas))
        if self.k < 1:
            raise ValueError(f"k: at least 1 class must be kept, got {self.k}")
        if not self.betas or any(not 0 < beta < float("inf") for beta in self.betas):
            raise ValueError(f"betas: one or more positive numbers, got {list(self.betas)}")
        if any(a >= b for a, b in zip(self.betas, self.betas[1:], strict=False)):
            raise ValueError(f"betas: must ascend, got {list(self.betas)}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: {self.dtype!r} is none of {', '.join(DTYPES)}")

    def layout(self, size: int) -> tuple[Field, ...]:
        """ids, log_probs: [N, min(k, V)], likeliest first; tail_log_mass: [N, len(betas)]."""
        k = min(self.k, size)
        return (
            Field("ids", id_dtype(size), (k,)),
            Field("log_probs", DTYPES[self.dtype], (k,)),
            Field("tail_log_mass", "<f4", (len(self.betas),)),
        )

    def encode(self, logits: Array, uniforms: Array) -> Encoded:
        """See `Codec.encode`."""
        n, size = logits.shape
        k = min(self.k, size)
        bad = ~np.isfinite(logits.max(axis=1))
        if bad.any():
            raise NonFiniteLogits(bad)
        order = np.argsort(-logits, axis=1, kind="stable")
        ranked = np.take_along_axis(logits, order, axis=1).astype(np.float64)
        ranked -= ranked[:, :1].copy()
        log_probs = ranked - np.log(np.exp(ranked).sum(axis=1, keepdims=True))
        with np.errstate(divide="ignore", over="ignore"):
            tail = np.stack([_log_sum_exp(beta * log_probs[:, k:]) for beta in self.betas], axis=1)
            return {
                "ids": order[:, :k].astype(id_dtype(size)),
                "log_probs": log_probs[:, :k].astype(DTYPES[self.dtype]),
                "tail_log_mass": tail.astype("<f4"),
            }

    def encode_torch(self, logits: torch.Tensor, uniforms: Array) -> Encoded:
        """The ids of `encode` exactly; values within rounding."""
        return self.encode(logits.double().cpu().numpy(), uniforms)

    def decode(self, encoded: Encoded, size: int) -> TopKTargets:
        """See `TopKTargets`."""
        return TopKTargets(
            ids=encoded["ids"].astype(np.int64),
            log_probs=encoded["log_probs"].astype(np.float32),
            betas=self.betas,
            tail_log_mass=encoded["tail_log_mass"].astype(np.float32),
            size=size,
        )

    def statistics(self, encoded: Encoded, size: int) -> dict[str, float]:
        """entries: min(k, V); captured_mass: the probability of the kept classes; payload_bytes per target."""
        n = len(encoded["ids"])
        if n == 0:
            return {"entries": 0.0, "captured_mass": 0.0, "payload_bytes": 0.0}
        mass = np.exp(encoded["log_probs"].astype(np.float64)).sum() / n
        return {
            "entries": float(encoded["ids"].shape[1]),
            "captured_mass": float(mass),
            "payload_bytes": sum(array.nbytes for array in encoded.values()) / n,
        }


def _log_sum_exp(values: Array) -> Array:
    """Along axis 1, -inf where there is nothing to sum; float64 [N, m] to [N]."""
    if values.shape[1] == 0:
        return np.full(len(values), -np.inf)
    top = np.maximum(values.max(axis=1), np.finfo(np.float64).min)
    return np.asarray(top + np.log(np.exp(values - top[:, None]).sum(axis=1)))
