"""Which rows a reader sees, and in what order: a function of the store, the seed and the epoch alone.

Knows nothing of reading, batches or ranks. A million shards are columns here, not objects.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.targets.decoded import Ints
from pipeline.targets.shards import Shard, Shards

Split = Literal["train", "holdout", "all"]

_SPELLED = 2**16
"""Blocks that are text at once."""


@dataclass(frozen=True)
class Block:
    """Rows start..stop of a shard; the whole shard but for stores of a single one."""

    shard: Shard
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Blocks(Sequence[Block]):
    """Some blocks, sorted by unit id. starts, stops: int64 [n], the rows of each in its shard."""

    shards: Shards
    starts: Ints
    stops: Ints

    @property
    def lengths(self) -> Ints:
        """Rows of each block, int64 [n]."""
        lengths: Ints = self.stops - self.starts
        return lengths

    def __len__(self) -> int:
        return len(self.shards)

    @overload
    def __getitem__(self, at: int) -> Block: ...
    @overload
    def __getitem__(self, at: slice) -> Blocks: ...
    def __getitem__(self, at: int | slice) -> Block | Blocks:
        if isinstance(at, slice):
            return Blocks(self.shards[at], self.starts[at], self.stops[at])
        return Block(self.shards[at], int(self.starts[at]), int(self.stops[at]))


@dataclass(frozen=True, eq=False)
class Span:
    """Some blocks whose rows are shuffled together: a window, before it is loaded.

    first: its first row's place in the epoch. blocks: their places, int64 [n]. number: of the first of them
    in the epoch's sequence of blocks.
    """

    epoch: int
    first: int
    rows: int
    blocks: Ints
    number: int


def blocks_of(shards: Shards, split: Split, holdout: float) -> Blocks:
    """The blocks of one side, sorted by unit id.

    A shard is held out when the hash of its unit id, as a number in [0, 1), is below `holdout`, so a shard
    keeps its side when the store grows. With two or more shards each side gets at least one: the one that
    was nearest to it. A store of a single shard is cut in two: its last rows are held out, so that at most
    one record lies on both sides. holdout = 0 holds nothing out.
    """
    if split == "all" or not holdout or not len(shards):
        return _whole(shards[:0] if split == "holdout" else shards)
    if len(shards) == 1:
        rows = int(shards.rows[0])
        cut = rows - min(max(1, math.ceil(holdout * rows)), rows - 1)
        start, stop = (cut, rows) if split == "holdout" else (0, cut)
        return Blocks(shards, np.array([start]), np.array([stop])) if start < stop else _whole(shards[:0])
    fractions = _fractions(shards)
    held = int((fractions < holdout).sum())
    chosen = np.zeros(len(shards), dtype=bool)
    chosen[np.argsort(fractions, kind="stable")[: min(max(1, held), len(shards) - 1)]] = True
    return _whole(shards.take(chosen if split == "holdout" else ~chosen))


def _whole(shards: Shards) -> Blocks:
    return Blocks(shards, np.zeros(len(shards), dtype=np.int64), shards.rows)


def spans(
    blocks: Blocks, seed: int, epoch: int, window_shards: int, shuffle: bool, position: int = 0
) -> Iterator[Span]:
    """The windows of an epoch from the one that holds row `position` of it on.

    Blocks are permuted over the whole epoch, rows within a window of `window_shards` blocks; without
    shuffling each block is a window.
    """
    sequence = permutation(len(blocks), seed, epoch) if shuffle else np.arange(len(blocks))
    size = window_shards if shuffle else 1
    starts = np.arange(0, len(blocks), size)
    ends = np.cumsum(np.add.reduceat(blocks.lengths[sequence], starts)) if len(blocks) else starts
    for at in range(int(np.searchsorted(ends, position, side="right")), len(starts)):
        first = int(ends[at - 1]) if at else 0
        number = int(starts[at])
        yield Span(epoch, first, int(ends[at]) - first, sequence[number : number + size], number)


def order_of(span: Span, seed: int, shuffle: bool) -> Ints:
    """The order of a window's rows once its blocks are laid end to end, int64 [rows]."""
    return permutation(span.rows, seed, span.epoch, span.number) if shuffle else np.arange(span.rows)


def bucketed(order: Ints, lengths: Ints, rows: int, batch_rows: int, seed: int, span: Span) -> Ints:
    """The same rows; in every `rows` of them those of one batch are about equally long, the batches at
    random.

    lengths: of the window's rows, not of the order.
    """
    parts: list[Ints] = []
    for start in range(0, len(order), rows):
        some = order[start : start + rows]
        some = some[np.argsort(lengths[some], kind="stable")]
        batches = [some[at : at + batch_rows] for at in range(0, len(some), batch_rows)]
        # One that is not full stays last, or it would shift all behind it.
        full = len(some) // batch_rows
        parts += [batches[at] for at in permutation(full, seed, span.epoch, span.number, start)]
        parts += batches[full:]
    return np.concatenate(parts)


def permutation(count: int, *name: int) -> Ints:
    """A permutation of range(count) that depends on `count` and `name` alone, on every machine and release.

    NumPy promises the raw bits of Philox for good, but not how `Generator.permutation` uses them.
    """
    digest = hashlib.blake2b(json.dumps(name).encode(), digest_size=16).digest()
    bits = np.random.Philox(key=np.frombuffer(digest, dtype="<u8").astype(np.uint64))
    return np.argsort(bits.random_raw(count), kind="stable") if count else np.zeros(0, dtype=np.int64)


def fingerprint(blocks: Blocks, spec_fingerprint: str) -> str:
    """Names exactly these rows of this store, 32 hexadecimal digits: the hash of the JSON
    [spec, [[unit, sha256, start, stop], ...]].
    """
    digest = hashlib.blake2b(f"[{json.dumps(spec_fingerprint)}, [".encode(), digest_size=16)
    for start in range(0, len(blocks), _SPELLED):
        part = blocks[start : start + _SPELLED]
        # Arrow spells a million of them in the time that `json` takes for fifty thousand.
        first, last = (pa.array(column).cast(pa.string()) for column in (part.starts, part.stops))
        words = [pa.scalar(word) for word in ('["', '", "', '", ', ", ", "]", "")]
        units, hashes = _digits(part.shards.units), _digits(part.shards.sha256)
        spelled = pc.binary_join_element_wise(
            words[0], units, words[1], hashes, words[2], first, words[3], last, words[4], words[5]
        )
        joined = pc.binary_join(pa.ListArray.from_arrays([0, len(spelled)], spelled), ", ")
        digest.update((", " if start else "").encode() + joined[0].as_py().encode())
    digest.update(b"]]")
    return digest.hexdigest()


def _digits(column: npt.NDArray[np.bytes_]) -> pa.Array:
    """Equally long digits as Arrow's strings."""
    fixed = pa.binary(column.itemsize)
    data = pa.py_buffer(np.ascontiguousarray(column))
    return (
        pa.FixedSizeBinaryArray.from_buffers(fixed, len(column), [None, data])
        .cast(pa.binary())
        .cast(pa.string())
    )


def _fractions(shards: Shards) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for each unit, from its id alone."""
    fractions = np.zeros(len(shards))
    for start in range(0, len(shards), _SPELLED):
        units = shards.units[start : start + _SPELLED].tolist()
        digests = [hashlib.blake2b(unit, digest_size=8, person=b"holdout").digest() for unit in units]
        fractions[start : start + len(units)] = np.frombuffer(b"".join(digests), dtype="<u8") / 2**64
    return fractions
