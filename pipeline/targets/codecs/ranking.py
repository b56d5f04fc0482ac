"""The likeliest classes of a distribution in order, and what all the others weigh at several temperatures.

What top-k and top-p have in common, in NumPy and in torch. The tail is summed from the full logits and never
taken as 1 - sum of the head, which loses every digit when the head has nearly all the mass.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipeline.targets.codecs.base import Array, Codec, Encoded, NonFiniteLogits, chunks

if TYPE_CHECKING:
    import torch

DTYPES = {"float16": "<f2", "float32": "<f4"}
"""How a log-probability is stored."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Ranked:
    """The k likeliest classes of N targets, equal ones by ascending id, and the tail: all other classes.

    ids: int64 [N, k]; log_probs: float64 [N, k]; tail_log_mass, tail_slope: float64 [N, betas], see
    `pipeline.targets.tail`. A tail without mass has a log-mass of -inf and a slope of 0.
    """

    ids: npt.NDArray[np.int64]
    log_probs: Floats
    tail_log_mass: Floats
    tail_slope: Floats


class RankingCodec(Codec):
    """A codec that stores some of the likeliest classes, k at most, and the tail."""

    k: int
    betas: tuple[float, ...]
    slopes: bool

    def encode(self, logits: Array, uniforms: Array) -> Encoded:
        """See `Codec.encode`."""
        size = logits.shape[1]
        return self.encode_ranked(rank(logits, min(self.k, size), self.betas), size)

    def encode_torch(self, logits: torch.Tensor, uniforms: Array) -> Encoded:
        """As near to `encode` as `rank_torch` says: the same ids, all else before it is rounded."""
        size = logits.shape[1]
        return self.encode_ranked(rank_torch(logits, min(self.k, size), self.betas, self.slopes), size)

    @abstractmethod
    def encode_ranked(self, ranked: Ranked, size: int) -> Encoded:
        """The same of classes that are ranked already, min(k, V) of each target, and the tail at `betas`."""


def checked(k: int, betas: Iterable[float], dtype: str, slopes: bool) -> tuple[float, ...]:
    """The betas of a configuration, as floats. Raises ValueError that names the key which is wrong."""
    found = tuple(float(beta) for beta in betas)
    if not isinstance(k, int) or k < 1:
        raise ValueError(f"k: must be a whole number of at least 1, got {k!r}")
    if not found or any(not 0 < beta < float("inf") for beta in found):
        raise ValueError(f"betas: must be one or more positive numbers, got {list(found)}")
    if any(a >= b for a, b in itertools.pairwise(found)):
        raise ValueError(f"betas: must ascend, got {list(found)}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype: {dtype!r} is none of {', '.join(DTYPES)}")
    if not isinstance(slopes, bool):
        raise ValueError(f"slopes: must be true or false, got {slopes!r}")
    if slopes and len(found) < 2:
        raise ValueError(f"slopes: serve between betas, so give two or more of these, not {list(found)}")
    return found


def rank(logits: Array, k: int, betas: tuple[float, ...]) -> Ranked:
    """The reference: float64, and a full sort. logits: [N, V]; k at most V. Raises NonFiniteLogits."""
    bad = ~np.isfinite(logits.max(axis=1))
    if bad.any():
        raise NonFiniteLogits(bad)
    order = np.argsort(-logits, axis=1, kind="stable")
    ranked = np.take_along_axis(logits, order, axis=1).astype(np.float64)
    ranked -= ranked[:, :1].copy()
    log_probs = ranked - np.log(np.exp(ranked).sum(axis=1, keepdims=True))
    return Ranked(order[:, :k], log_probs[:, :k], *tilted(log_probs[:, k:], betas))


def tilted(log_probs: Floats, betas: tuple[float, ...]) -> tuple[Floats, Floats]:
    """Log-mass and slope of some classes at each beta. [N, m] to [N, betas], twice."""
    masses = np.full((len(log_probs), len(betas)), -np.inf)
    slopes = np.zeros_like(masses)
    if log_probs.shape[1] == 0:
        return masses, slopes
    for column, beta in enumerate(betas):
        scaled = beta * log_probs
        top = np.maximum(scaled.max(axis=1), np.finfo(np.float64).min)
        weights = np.exp(scaled - top[:, None])
        total = weights.sum(axis=1)
        with np.errstate(divide="ignore"):
            masses[:, column] = top + np.log(total)
        moment = (weights * np.where(weights > 0, log_probs, 0.0)).sum(axis=1)
        slopes[:, column] = moment / np.where(total > 0, total, 1.0)
    return masses, slopes


def rank_torch(logits: torch.Tensor, k: int, betas: tuple[float, ...], slopes: bool) -> Ranked:
    """The same on the tensor's device. slopes: whether they are wanted, for they take another pass (else 0).

    The ids of `rank` exactly, log-probabilities and log-masses within 1e-5, slopes within 1e-5 or, if they
    are large, 1e-5 of their size: arithmetic over all classes is float32 (float64 for float64 logits), over
    the kept ones float64.
    """
    import torch

    logits = logits.detach()
    size = logits.shape[1]
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
    measured = sorted({1.0, *betas})
    masses, moments = _tail_sums(logits, ids, top, measured, slopes)
    log_total = torch.logaddexp(head.logsumexp(dim=1), top + masses[:, measured.index(1.0)].log())
    chosen = [measured.index(beta) for beta in betas]
    mass, moment, shift = masses[:, chosen], moments[:, chosen], (top - log_total)[:, None]
    log_mass = mass.new_tensor(betas) * shift + mass.log()
    slope = torch.where(mass > 0, shift + moment / mass, 0.0)
    return Ranked(*(a.cpu().numpy() for a in (ids, head - log_total[:, None], log_mass, slope)))


def _lowest_ids(logits: torch.Tensor, values: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The kept ids where the last kept logit equals the first dropped one: of those equal, the lowest.

    values: [N, k + 1], ids: [N, k], as torch.topk found them. Only rows with such a tie are looked at again.
    """
    import torch

    k = ids.shape[1]
    tied = (values[:, k - 1] == values[:, k]).nonzero().squeeze(1)
    for some in torch.split(tied, chunks(logits).step):
        border = values[some, k, None]
        surely = (values[some, :k] > border).sum(dim=1)
        row, equal = (logits[some] == border).nonzero(as_tuple=True)
        count = torch.bincount(row, minlength=len(some))
        place = surely[row] + torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
        kept = place < k
        ids = ids.index_put((some[row[kept]], place[kept]), equal[kept])
    return ids


def _tail_sums(
    logits: torch.Tensor, ids: torch.Tensor, top: torch.Tensor, betas: list[float], slopes: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each beta the sums of e and of (x - top) e, with e = exp(beta (x - top)), over the classes not in
    `ids`: float64 [N, betas] each, the second one 0 unless slopes are wanted.
    """
    import torch

    masses = top.new_zeros(len(logits), len(betas))
    moments = torch.zeros_like(masses)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    starts = chunks(logits)
    for start in starts:
        chunk = slice(start, start + starts.step)
        shifted = logits[chunk].to(dtype).contiguous() - top[chunk, None].to(dtype)
        shifted.scatter_(1, ids[chunk], -torch.inf)
        for i, beta in enumerate(betas):
            weights = (shifted * beta).exp_()
            masses[chunk, i] = weights.sum(dim=1).double()
            if slopes:
                # What has no weight is 0 * -inf.
                moments[chunk, i] = weights.mul_(shifted).nan_to_num_(nan=0.0).sum(dim=1).double()
    return masses, moments
