"""Which rows an audit looks at: a function of (seed, store). It knows commit records, and opens no shard."""

from __future__ import annotations

import hashlib
import heapq
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.targets.commit import Commit
from pipeline.targets.errors import UserError
from pipeline.targets.store import Store


@dataclass(frozen=True)
class Sample:
    """Some rows of a unit. rows: their places in its shard, ascending, int64 [n]."""

    commit: Commit
    rows: npt.NDArray[np.int64]


def choose(store: Store, rows: int, units: int, seed: int) -> list[Sample]:
    """Units without replacement, with a probability by their rows (Efraimidis & Spirakis, 2006), and rows of
    each, as equally as it goes. Raises UserError when nothing is committed.
    """
    best = heapq.nlargest(
        min(units, rows),
        ((math.log(_uniform(seed, c.unit)) / c.rows, c.unit, c) for c in store.commits() if c.rows),
    )
    if not best:
        raise UserError(f"nothing is labelled in {store.url} yet: there is nothing to audit")
    # Ascending, so that what small units do not have is taken of the larger ones.
    commits = sorted((commit for _, _, commit in best), key=lambda commit: (commit.rows, commit.unit))
    chosen, left = [], rows
    for number, commit in enumerate(commits):
        share = min(-(-left // (len(commits) - number)), commit.rows)
        rng = np.random.default_rng([seed, *bytes.fromhex(commit.unit)])
        chosen.append(Sample(commit, np.sort(rng.choice(commit.rows, share, replace=False))))
        left -= share
    return chosen


def _uniform(seed: int, unit: str) -> float:
    digest = hashlib.blake2b(f"{seed} {unit}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") + 1) / (2**64 + 1)
