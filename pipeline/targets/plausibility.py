"""What targets must be, whoever the teacher was: finite, of classes that exist, summing to one, in place.

It knows stored targets and the tokens that really came next; neither corpus nor teacher. `check` is the cheap
look at a store that a training run takes before its first step; the audit, which has the teacher, uses the
same rules.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.targets.commit import Commit
from pipeline.targets.decoded import (
    DenseTargets,
    EmbeddingTargets,
    Ints,
    SparseTargets,
    Targets,
    TopKTargets,
    TopPTargets,
)
from pipeline.targets.errors import CorruptShard
from pipeline.targets.rows import Rows
from pipeline.targets.shards import Shard, Shards
from pipeline.targets.shift import DISTRIBUTIONS, Floats, Shift, ShiftTest, label_shift
from pipeline.targets.spec import LABEL, TOKENS, Head
from pipeline.targets.store import Store

SUM_ERROR = 1e-3
"""How far the weights of a sparse target may be from summing to one."""

TOPK_SUM_ERROR = 2e-2
"""The same of a top-k target: a log-probability in float16 is rounded by up to a thousandth of itself."""

TARGET_MASK = "target_mask"
"""The input, if a store has it (an imported one may), that is 0 at the tokens whose target is not the
teacher's."""

SHARDS = 4
"""Shards that `check` reads."""

MARGIN = 0.1
"""Nats by which another token must fit better before a store is refused for it."""


def flaw(targets: Targets) -> tuple[int, str] | None:
    """The first target that is no distribution over the head's classes, and why; None if all are."""
    match targets:
        case DenseTargets(logits):
            top = logits.max(axis=1, initial=-np.inf)
            return _first(~np.isfinite(top), "its logits are not finite")
        case TopKTargets(ids, log_probs, betas, tail, size):
            bad = np.asarray(((ids < 0) | (ids >= size)).any(axis=1))
            if (found := _first(bad, f"a class is beyond the head's {size}")) is not None:
                return found
            mass = np.exp(log_probs.astype(np.float64)).sum(axis=1)
            if 1.0 in betas:
                mass += np.exp(tail[:, betas.index(1.0)].astype(np.float64))
                return _first(
                    ~(abs(mass - 1) <= TOPK_SUM_ERROR), "its probabilities sum to {}, not to 1", mass
                )
            return _first(~(mass <= 1 + TOPK_SUM_ERROR), "its probabilities sum to {}, more than 1", mass)
        case SparseTargets(ids, weights, offsets, _, size):
            rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
            bad = np.zeros(len(offsets) - 1, dtype=np.bool_)
            bad[rows[(ids < 0) | (ids >= size)]] = True
            if (found := _first(bad, f"a class is beyond the head's {size}")) is not None:
                return found
            bad[rows[~(weights >= 0)]] = True
            if (found := _first(bad, "a weight is negative or undefined")) is not None:
                return found
            mass = np.bincount(rows, weights, minlength=len(offsets) - 1).astype(np.float64)
            return _first(~(abs(mass - 1) <= SUM_ERROR), "its weights sum to {}, not to 1", mass)
        case TopPTargets(ids, log_probs, offsets, betas, tail, size):
            rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
            bad = np.zeros(len(offsets) - 1, dtype=np.bool_)
            bad[rows[(ids < 0) | (ids >= size)]] = True
            if (found := _first(bad, f"a class is beyond the head's {size}")) is not None:
                return found
            mass = np.zeros(len(offsets) - 1)
            np.add.at(mass, rows, np.exp(log_probs.astype(np.float64)))
            if 1.0 in betas:
                mass += np.exp(tail[:, betas.index(1.0)].astype(np.float64))
                return _first(
                    ~(abs(mass - 1) <= TOPK_SUM_ERROR), "its probabilities sum to {}, not to 1", mass
                )
            return _first(~(mass <= 1 + TOPK_SUM_ERROR), "its probabilities sum to {}, more than 1", mass)
        case EmbeddingTargets(vectors):
            bad = np.asarray(~np.isfinite(vectors).all(axis=1))
            return _first(bad, "its features are not finite")


def _first(bad: npt.NDArray[np.bool_], reason: str, mass: Floats | None = None) -> tuple[int, str] | None:
    at = np.flatnonzero(bad)
    if not len(at):
        return None
    return int(at[0]), reason if mass is None else reason.format(f"{mass[at[0]]:.4g}")


@dataclass(frozen=True)
class Checked:
    """What `check` looked at. shift: None for a head that has no next tokens."""

    shards: int
    rows: int
    targets: int
    shift: Shift | None


def check(store: Store, commits: Sequence[Commit | Shard], head: str, rows: int, seed: int = 0) -> Checked:
    """Look at some rows of some shards, at most SHARDS of them; the cost does not grow with the store.

    commits: those to choose from; `Shards` are chosen from without an object each. Raises CorruptShard, which
    names the shard and the record, for a checksum that is wrong, for a target that is no distribution, for a
    label (a next token, or the input "label") that is no class, and for targets that clearly stand one
    position off.
    """
    declared = store.spec.head(head)
    rng = np.random.default_rng(seed)
    having: Sequence[Commit | Shard] = commits
    if not isinstance(commits, Shards):
        having = sorted((commit for commit in commits if commit.rows), key=lambda commit: commit.unit)
    chosen = [having[i] for i in rng.permutation(len(having))[:SHARDS]]
    test, seen, targets = ShiftTest(), 0, 0
    sequences = declared.positions == "next_token" and any(i.name == TOKENS for i in store.spec.inputs)
    for number, commit in enumerate(chosen):
        share = rows * (number + 1) // len(chosen) - rows * number // len(chosen)
        picked = np.sort(rng.permutation(commit.rows)[:share])
        for part in pick(store, commit, picked):
            for i in range(len(part)):
                row = part.take(np.array([i]))
                decoded = row.decode(head)
                if (wrong := flaw(decoded)) is not None:
                    raise CorruptShard(
                        f"shard {commit.shard} of {store.url}: target {wrong[0]} of the head {head} of "
                        f"record {row.keys[0]!r} is no distribution: {wrong[1]}; discard its unit and label "
                        "again"
                    )
                if (label := _no_class(row, declared)) is not None:
                    raise CorruptShard(
                        f"shard {commit.shard} of {store.url}: record {row.keys[0]!r} has the label {label}, "
                        f"and the head {head} has the classes 0 to {declared.size - 1}: label with a teacher "
                        "of as many classes, or correct the corpus' labels"
                    )
                seen, targets = seen + 1, targets + int(row.counts(declared)[0])
                if sequences and isinstance(decoded, DISTRIBUTIONS):
                    label_shift(test, decoded, tokens_of(row), given_of(row))
    shift = test.result(margin=MARGIN) if sequences else None
    if shift is not None and shift.verdict is not None:
        better = shift.before if shift.verdict == "before" else shift.after
        raise CorruptShard(
            f"the targets of the head {head} in {store.url} stand one position off: the tokens "
            f"{shift.verdict} the ones they are for fit them better (mean log-likelihood {better:.2f} "
            f"against {shift.own:.2f} nats): label again, or import again with the right shift"
        )
    return Checked(len(chosen), seen, targets, shift)


def _no_class(row: Rows, head: Head) -> int | None:
    """The largest label of a single row's targets, if the head has no such class."""
    name = TOKENS if head.positions == "next_token" else LABEL
    if head.codec.of != "logits" or name not in row.inputs:
        return None
    labels = tokens_of(row)[1:] if name == TOKENS else np.asarray(row.inputs[name])
    largest = int(labels.max(initial=0))
    return largest if largest >= head.size else None


def pick(store: Store, commit: Commit | Shard, rows: Ints) -> Iterator[Rows]:
    """Some rows of a unit, by their places in the shard, ascending. The shard's checksum is verified."""
    start = 0
    for part in store.read(commit):
        here = rows[(rows >= start) & (rows < start + len(part))] - start
        if len(here):
            yield part.take(here)
        start += len(part)


def given_of(row: Rows) -> npt.NDArray[np.bool_]:
    """Which next-token targets of a single row are the teacher's, bool [n]."""
    if TARGET_MASK not in row.inputs:
        return np.ones(int(row.targets[0]), dtype=np.bool_)
    return row.inputs[TARGET_MASK][0].astype(np.bool_)[: int(row.targets[0])]


def tokens_of(row: Rows) -> Ints:
    """The token ids of a single row, int64 [L]."""
    return row.inputs[TOKENS][0].astype(np.int64)
