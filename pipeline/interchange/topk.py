"""From kept classes and log-probabilities, as other systems store them, to the arrays of our `topk` codec.

It knows distributions of which a part was kept; of rows and files it knows nothing. What was not kept was
never measured, so the tail is what is missing from one, and the store says so ("tail": "from_sum").
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.targets.codecs import Encoded, TopK
from pipeline.targets.codecs.base import Array, id_dtype

TAIL = "from_sum"
"""What a spec says of a tail that is one less the sum of the kept probabilities."""

EXCESS = 0.05
"""By how much kept probabilities may add up to more than one: formats round and approximate. They are scaled
to one then; more than that is no distribution."""

NOTHING = -1e8
"""A log-probability at or below this stands for an entry that is not there: padding is -inf or -1e9."""


ABSENT = np.iinfo(np.int64).max
"""In place of the id of an entry that is not there."""


class NoDistribution(ValueError):
    """Numbers that are no part of a distribution. The message is a reason, code its word, for quarantine."""

    def __init__(self, reason: str, code: str) -> None:
        self.code = code
        super().__init__(reason)


def codec(k: int) -> TopK:
    """The codec of imported top-k targets."""
    return TopK(k=k, betas=(1.0,), dtype="float32")


def encode(ids: Array, log_probs: Array, k: int, size: int) -> Encoded:
    """What `codec(k)` stores, for a head of `size` classes.

    ids: integers [N, w]; log_probs: [N, w], in any order, at most `NOTHING` where there is no entry. The k
    likeliest are kept; fewer are filled up with the highest ids that the target has not, of probability 0. A
    target without any entry thus says that its mass is somewhere else, which is as little as can be said.
    Raises NoDistribution for the first target that is none.
    """
    ids, log_probs = _sorted(ids, log_probs)
    for target, (code, reason) in sorted(_faults(ids, log_probs, size).items()):
        raise NoDistribution(f"target {target}: {reason}", code)
    width = max(min(k, size), ids.shape[1])
    ids, log_probs = _widened(ids, width, ABSENT), _widened(log_probs, width, -np.inf)
    order = np.argsort(-log_probs, axis=1, kind="stable")[:, : min(k, size)]
    ids, log_probs = np.take_along_axis(ids, order, 1), np.take_along_axis(log_probs, order, 1)
    _fill(ids, size)
    total = np.exp(log_probs).sum(axis=1)
    log_probs -= np.log(np.maximum(total, 1.0))[:, None]
    with np.errstate(divide="ignore"):
        tail = np.log1p(-np.minimum(total, 1.0))
    if ids.shape[1] == size:
        tail[:] = -np.inf
    return {
        "ids": ids.astype(id_dtype(size)),
        "log_probs": log_probs.astype("<f4"),
        "tail_log_mass": tail[:, None].astype("<f4"),
    }


def normalized(values: Array) -> Array:
    """Log-probabilities [N, w] over the kept classes alone, from kept logits [N, w]; -inf where all are."""
    values = values.astype(np.float64)
    values = np.where(values <= NOTHING, -np.inf, values)
    top = np.maximum(values.max(axis=1, keepdims=True, initial=-np.inf), np.finfo(np.float64).min)
    total = np.exp(values - top).sum(axis=1, keepdims=True)
    return np.where(np.isneginf(values), -np.inf, values - top - np.log(np.maximum(total, 1e-300)))


def faults(ids: Array, log_probs: Array, size: int) -> dict[int, tuple[str, str]]:
    """The targets that are no distributions: by index, a word and the reason, for quarantine."""
    return _faults(*_sorted(ids, log_probs), size)


def _faults(ids: Array, log_probs: Array, size: int) -> dict[int, tuple[str, str]]:
    """The same, of sorted entries."""
    out: dict[int, tuple[str, str]] = {}
    for target, column in np.argwhere((ids[:, 1:] == ids[:, :-1]) & (ids[:, 1:] != ABSENT)):
        out[int(target)] = ("undecodable", f"class {ids[target, column]} stands there twice")
    for target, column in np.argwhere((ids != ABSENT) & ((ids < 0) | (ids >= size))):
        out[int(target)] = ("undecodable", f"class {ids[target, column]} is not one of {size}")
    with np.errstate(over="ignore"):
        total = np.exp(log_probs).sum(axis=1)
    for target in np.flatnonzero(~(total <= 1 + EXCESS)):
        reason = f"its probabilities sum to {total[target]:.4g}, which is more than one"
        if bool((np.isnan(log_probs[target]) | np.isposinf(log_probs[target])).any()):
            out[int(target)] = ("non_finite", "a log-probability is not finite")
        else:
            out.setdefault(int(target), ("undecodable", reason))
    return out


def _sorted(ids: Array, log_probs: Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """By ascending id, entries that are not there last and alike."""
    absent = log_probs <= NOTHING
    ids = np.where(absent, ABSENT, ids.astype(np.int64))
    log_probs = np.where(absent, -np.inf, log_probs.astype(np.float64))
    order = np.argsort(ids, axis=1, kind="stable")
    return np.take_along_axis(ids, order, 1), np.take_along_axis(log_probs, order, 1)


def _widened(values: Array, width: int, fill: float) -> Array:
    """With columns of `fill` at the right, up to `width`."""
    return np.pad(values, ((0, 0), (0, width - values.shape[1])), constant_values=fill)


def _fill(ids: npt.NDArray[np.int64], size: int) -> None:
    """Gives each missing entry, which all stand at the right, an id of its own."""
    k = ids.shape[1]
    missing = (ids >= size).sum(axis=1)
    ids[missing == k] = np.arange(size - 1, size - 1 - k, -1)
    for target in np.flatnonzero((missing > 0) & (missing < k)):
        kept = k - missing[target]
        # Of the highest k ids, those that are kept already are at most `kept`: enough are left.
        free = np.setdiff1d(np.arange(size - k, size), ids[target, :kept])
        ids[target, kept:] = free[::-1][: missing[target]]
