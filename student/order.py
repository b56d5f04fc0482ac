"""Which rows a reader sees, and in what order: a function of the store, the seed and the epoch alone.

Knows nothing of reading, batches or ranks.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.targets.commit import Commit
from pipeline.targets.decoded import Ints

Split = Literal["train", "holdout", "all"]


@dataclass(frozen=True)
class Block:
    """Rows start..stop of a shard; the whole shard but for stores of a single one."""

    commit: Commit
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def blocks_of(commits: Sequence[Commit], split: Split, holdout: float) -> list[Block]:
    """The blocks of one side, sorted by unit id.

    A shard is held out when the hash of its unit id, as a number in [0, 1), is below `holdout`, so a shard
    keeps its side when the store grows. With two or more shards each side gets at least one: the one that
    was nearest to it. A store of a single shard is cut in two: its last rows are held out, so that at most
    one record lies on both sides. holdout = 0 holds nothing out.
    """
    ordered = sorted((c for c in commits if c.rows), key=lambda c: c.unit)
    if split == "all" or not holdout or not ordered:
        return [] if split == "holdout" else [Block(c, 0, c.rows) for c in ordered]
    if len(ordered) == 1:
        (commit,) = ordered
        cut = commit.rows - min(max(1, math.ceil(holdout * commit.rows)), commit.rows - 1)
        start, stop = (cut, commit.rows) if split == "holdout" else (0, cut)
        return [Block(commit, start, stop)] if start < stop else []
    by_hash = sorted(ordered, key=lambda c: _fraction(c.unit))
    held = sum(_fraction(c.unit) < holdout for c in ordered)
    chosen = {c.unit for c in by_hash[: min(max(1, held), len(ordered) - 1)]}
    return [Block(c, 0, c.rows) for c in ordered if (c.unit in chosen) == (split == "holdout")]


def windows(
    blocks: Sequence[Block], seed: int, epoch: int, window_shards: int, shuffle: bool
) -> Iterator[tuple[list[Block], Ints]]:
    """The blocks of each window, and the order of their rows once they are laid end to end, int64 [rows].

    Blocks are permuted over the whole epoch, rows within a window of `window_shards` blocks.
    """
    sequence = permutation(len(blocks), seed, epoch) if shuffle else np.arange(len(blocks))
    for start in range(0, len(blocks), window_shards):
        window = [blocks[i] for i in sequence[start : start + window_shards]]
        rows = sum(map(len, window))
        yield window, permutation(rows, seed, epoch, start) if shuffle else np.arange(rows)


def permutation(count: int, *name: int) -> Ints:
    """A permutation of range(count) that depends on `count` and `name` alone, on every machine and release.

    NumPy promises the raw bits of Philox for good, but not how `Generator.permutation` uses them.
    """
    digest = hashlib.blake2b(json.dumps(name).encode(), digest_size=16).digest()
    bits = np.random.Philox(key=np.frombuffer(digest, dtype="<u8").astype(np.uint64))
    return np.argsort(bits.random_raw(count), kind="stable") if count else np.zeros(0, dtype=np.int64)


def fingerprint(blocks: Sequence[Block], spec_fingerprint: str) -> str:
    """Names exactly these rows of this store, 32 hexadecimal digits."""
    content = [[b.commit.unit, b.commit.shard_sha256, b.start, b.stop] for b in blocks]
    text = json.dumps([spec_fingerprint, content])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _fraction(unit: str) -> float:
    digest = hashlib.blake2b(unit.encode(), digest_size=8, person=b"holdout").digest()
    return int.from_bytes(digest, "little") / 2**64
