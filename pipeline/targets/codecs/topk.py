"""Top-k: the k likeliest classes with their log-probabilities, and the mass of everything else.

Knows how to pick, order and measure; the tail's mass is summed from the full logits and never taken as
1 - sum of the head, which loses every digit when the head has nearly all the mass.

The tail's log-mass at an inverse temperature beta, log sum_tail exp(beta log p_i), makes a head plus one
"everything else" bucket right at temperature 1/beta. As a function of beta it is a cumulant generating
function: convex and smooth, so a few betas pin it down between them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
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

    kind: Literal["topk"] = field(default="topk", kw_only=True)
    """The k likeliest classes."""

    k: int = 64
    """Classes kept of each target."""

    betas: tuple[float, ...] = (1.0,)
    """Inverse temperatures at which the tail's mass is stored, ascending; 0.5 is temperature 2."""

    dtype: Literal["float16", "float32"] = "float16"
    """How a log-probability is stored."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(float(beta) for beta in self.betas))
        if not isinstance(self.k, int) or self.k < 1:
            raise ValueError(f"k: must be a whole number of at least 1, got {self.k!r}")
        if not self.betas or any(not 0 < beta < float("inf") for beta in self.betas):
            raise ValueError(f"betas: must be one or more positive numbers, got {list(self.betas)}")
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
        size = logits.shape[1]
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
        """The ids of `encode` exactly; log-probabilities and log-masses within 1e-5 before they are rounded.

        Arithmetic over all classes in float32 (float64 for float64 logits), over the kept ones in float64.
        """
        import torch

        logits = logits.detach()
        size = logits.shape[1]
        k = min(self.k, size)
        # One more than is kept: it says whether the border is a tie, and it is the largest of the tail.
        values, ids = torch.topk(logits, min(k + 1, size), dim=1)
        bad = ~torch.isfinite(values[:, 0])
        if bool(bad.any()):
            raise NonFiniteLogits(bad.cpu().numpy())
        border, ids = values[:, -1], ids[:, :k]
        if k < size:
            ids = _lowest_ids(logits, values, ids)
        # topk orders equal logits as it likes: by id, then stably by value.
        ids = ids.sort(dim=1).values
        values, order = logits.gather(1, ids).sort(dim=1, descending=True, stable=True)
        ids = ids.gather(1, order)
        head = values.double()
        top = border.double().nan_to_num(neginf=0.0)
        betas = sorted({1.0, *self.betas})
        masses = dict(zip(betas, _tail_masses(logits, ids, top, betas), strict=True))
        log_total = torch.logaddexp(head.logsumexp(dim=1), top + masses[1.0].log())
        tail = [beta * (top - log_total) + masses[beta].log() for beta in self.betas]
        with np.errstate(over="ignore"):
            return {
                "ids": ids.cpu().numpy().astype(id_dtype(size)),
                "log_probs": (head - log_total[:, None]).cpu().numpy().astype(DTYPES[self.dtype]),
                "tail_log_mass": torch.stack(tail, dim=1).cpu().numpy().astype("<f4"),
            }

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
        """entries: min(k, V); captured_mass: probability of the kept classes; payload_bytes per target."""
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


def _chunks(logits: torch.Tensor) -> range:
    """Starts of row chunks whose scratch stays in a CPU's cache, or is small for an accelerator."""
    elements = 2**20 if logits.device.type == "cpu" else 2**25
    return range(0, len(logits), max(1, elements // logits.shape[1]))


def _lowest_ids(logits: torch.Tensor, values: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The kept ids where the last kept logit equals the first dropped one: of those equal, the lowest.

    values: [N, k + 1], ids: [N, k], as torch.topk found them. Only rows with such a tie are looked at again.
    """
    import torch

    k = ids.shape[1]
    tied = (values[:, k - 1] == values[:, k]).nonzero().squeeze(1)
    starts = _chunks(logits)
    for some in torch.split(tied, starts.step):
        border = values[some, k, None]
        surely = (values[some, :k] > border).sum(dim=1)
        row, equal = (logits[some] == border).nonzero(as_tuple=True)
        count = torch.bincount(row, minlength=len(some))
        place = surely[row] + torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
        kept = place < k
        ids = ids.index_put((some[row[kept]], place[kept]), equal[kept])
    return ids


def _tail_masses(
    logits: torch.Tensor, ids: torch.Tensor, top: torch.Tensor, betas: list[float]
) -> list[torch.Tensor]:
    """For each beta the sum of exp(beta (x - top)) over the classes not in `ids`; float64 [N] each."""
    import torch

    masses = top.new_zeros(len(betas), len(logits))
    dtype = torch.promote_types(logits.dtype, torch.float32)
    starts = _chunks(logits)
    for start in starts:
        chunk = slice(start, start + starts.step)
        shifted = logits[chunk].to(dtype).contiguous() - top[chunk, None].to(dtype)
        shifted.scatter_(1, ids[chunk], -torch.inf)
        for i, beta in enumerate(betas):
            masses[i, chunk] = (shifted * beta).exp_().sum(dim=1)
    return list(masses)
