"""From a store to batches of torch tensors: shuffled, deterministic, resumable on any number of ranks.

Knows the store's contract and nothing of models, losses or process groups. Threads, not worker processes,
overlap reading with training: handing batches between processes costs ten times the reading.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from pipeline.targets.codecs.base import ranges
from pipeline.targets.decoded import Targets
from pipeline.targets.errors import ConfigError, UserError
from pipeline.targets.id_map import IdMap
from pipeline.targets.ragged import Ragged
from pipeline.targets.replay import RECORDED, keeps_ledger, needs_replay
from pipeline.targets.rows import Rows
from pipeline.targets.spec import Spec
from pipeline.targets.store import Store
from student.config import VocabularyConfig
from student.order import Block, Split, blocks_of, fingerprint, windows
from student.replay import Origin, Records, Replayer
from student.targets import TorchTargets, to_torch
from student.window import Window

STATE_VERSION = 1

TOKENS = "tokens"
"""The input whose next items are the labels of a "next_token" head."""

LABEL = "label"
"""The input, if a store has it, that holds the label of a "single" head."""

T = TypeVar("T")


def id_map(vocabulary: VocabularyConfig | None, spec: Spec) -> IdMap | None:
    """How the store's ids become the student's; None where they are the same. Raises as `IdMap.of`."""
    if vocabulary is None:
        return None
    return IdMap.of(spec, vocabulary.tokenizer, vocabulary.store_tokenizer)


def has_labels(spec: Spec, head: str) -> bool:
    """Whether the store knows the true classes of the head's targets; embeddings have none."""
    wanted = LABEL if spec.head(head).positions == "single" else TOKENS
    return spec.head(head).codec.of == "logits" and any(item.name == wanted for item in spec.inputs)


@dataclass(frozen=True)
class Batch:
    """Some rows of a store.

    inputs: by name, [B, ...]; a varying first dimension is padded with zeros to the longest, [B, L, ...].
    Unsigned integers of two and more bytes come as int64, all else as stored; the ledger of views and their
    digests are left out. lengths: int64 [B], true extent of the first varying input (1 if none varies).
    counts: int64 [B], targets per row of each "next_token" head. row_index, position_index: int64 [N], where
    in a [B, L] batch those N targets are: `outputs[row_index, position_index]` is [N, ...].
    targets: by head, N targets for "next_token", B for "single". keys: the records' keys.
    """

    spec: Spec
    keys: Sequence[str]
    inputs: Mapping[str, Tensor]
    lengths: Tensor
    counts: Tensor
    row_index: Tensor
    position_index: Tensor
    targets: Mapping[str, TorchTargets]

    def __len__(self) -> int:
        return len(self.keys)

    def pick(self, outputs: Tensor, head: str) -> Tensor:
        """Outputs that have a target: [B, L, V] -> [N, V] for "next_token", else [B, V] as it is."""
        if self.spec.head(head).positions == "single":
            return outputs
        return outputs[self.row_index, self.position_index]

    def labels(self, head: str) -> Tensor | None:
        """int64 [N], the tokens that really came next; for a "single" head the input "label", if there is."""
        if not has_labels(self.spec, head):
            return None
        if self.spec.head(head).positions == "single":
            return self.inputs[LABEL].long()
        return self.inputs[TOKENS][self.row_index, self.position_index + 1].long()

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same on another device."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        return dataclasses.replace(
            self,
            inputs={name: move(tensor) for name, tensor in self.inputs.items()},
            lengths=move(self.lengths),
            counts=move(self.counts),
            row_index=move(self.row_index),
            position_index=move(self.position_index),
            targets={name: t.to(device, non_blocking) for name, t in self.targets.items()},
        )


class TargetReader(IterableDataset[Batch]):
    """Reads a store as batches.

    The order of rows is a function of (seed, epoch): shards are permuted, then the rows of each window of
    `window_shards` shards. Global batches of `batch_rows` rows are cut from that order, across window
    borders, and rank r of w takes the r-th of w equal parts of each. So neither the number of ranks nor a
    restart changes what a global batch holds.

    Iterating is endless: epochs follow each other and no row is dropped; the batch at an epoch's end is
    filled with the first rows of the next epoch. `epoch(n)` is one epoch, whose last batch may be smaller.

    Memory holds at most two windows as stored (the one in use, and the next one that threads fetch
    meanwhile), and `ahead` decoded batches. Of inputs that are replayed it holds the corpus' files, as many
    as the windows have; a batch's are rendered with the batch, by the rank that gets it.

    url, options: the store. split: "train", "holdout" or "all"; holdout: share of the shards held out (see
    `student.order.blocks_of`). heads: names of the heads to decode, all by default. shuffle: False reads in
    the order of unit ids. vocabulary: the student's tokenizer; where its ids are others than the store's,
    tokens and targets come in the student's, and `spec` speaks of these. records: how to read a unit of the
    corpus, for a store whose views have a ledger and whose inputs were not kept: they are rendered again.
    Raises UserError for a store or a side of it without rows, ConfigError for impossible numbers,
    SpecMismatch for a tokenizer that the store's ids cannot be mapped to; and while iterating CorruptShard
    with the shard's name, SpecMismatch with the key of a record that the two tokenizers cut differently, or
    that renders to something else than the teacher saw.
    """

    def __init__(
        self,
        url: str,
        *,
        batch_rows: int = 64,
        seed: int = 0,
        split: Split = "train",
        holdout: float = 0.05,
        rank: int = 0,
        world_size: int = 1,
        heads: Sequence[str] | None = None,
        window_shards: int = 8,
        shuffle: bool = True,
        ahead: int = 2,
        options: Mapping[str, Any] | None = None,
        vocabulary: VocabularyConfig | None = None,
        records: Records | None = None,
    ) -> None:
        if batch_rows < 1 or batch_rows % world_size:
            raise ConfigError(f"batch_rows {batch_rows} cannot be shared equally by {world_size} ranks")
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank {rank} is not one of {world_size}")
        if window_shards < 1 or ahead < 1:
            raise ConfigError("window_shards and ahead must be at least 1")
        self.store = Store.open(url, options)
        self._replay = Replayer(self.store, records) if records and needs_replay(self.store.spec) else None
        self.id_map = id_map(vocabulary, self.store.spec)
        spec = self._replay.spec if self._replay else self.store.spec
        self.spec = self.id_map.spec(spec) if self.id_map else spec
        """What batches hold: the store's, or in the words of the student's tokenizer."""
        self._recorded = {item.name for item in RECORDED} if keeps_ledger(self.store.spec) else set()
        self.batch_rows, self.rank, self.world_size = batch_rows, rank, world_size
        self.heads = [self.spec.head(name).name for name in heads] if heads is not None else None
        self.seed, self.split, self.holdout = seed, split, holdout
        self.window_shards, self.shuffle, self.ahead = window_shards, shuffle, ahead
        self.blocks = blocks_of(list(self.store.commits(statistics=False)), split, holdout)
        self.rows = sum(map(len, self.blocks))
        """Rows of an epoch."""
        if not self.rows:
            raise UserError(
                f"{self.store.url} has no rows for {split!r} with a holdout of {holdout:g}: "
                "label more of the corpus first, or change the holdout"
            )
        self._epoch = self._position = 0
        self._compared: set[str] = set()

    def __iter__(self) -> Iterator[Batch]:
        """Endless, from where the state stands; each batch taken moves the state on."""
        self._refuse_workers()
        for batch, epoch, position in _ahead(self._batches(self._epoch, self._position), self.ahead):
            self._epoch, self._position = epoch, position
            yield batch

    def epoch(self, number: int) -> Iterator[Batch]:
        """All rows once, in the order of that epoch; the state does not move.

        A last batch of fewer rows is shared as equally as it goes, so a rank may get one batch less.
        """
        self._refuse_workers()
        for batch, _, _ in _ahead(self._batches(number, 0, endless=False), self.ahead):
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch starts: small, JSON, and the same on every rank."""
        return {
            "version": STATE_VERSION,
            **self._identity(),
            "epoch": self._epoch,
            "position": self._position,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on at that row, whatever the batch size and the number of ranks were.

        Raises ConfigError when the state is of another store, seed, split, window or tokenizer.
        """
        if state.get("version") != STATE_VERSION:
            raise ConfigError(
                f"the reader's state has version {state.get('version')!r}, this Decant reads "
                f"{STATE_VERSION}: resume with the release that wrote it"
            )
        for name, ours in self._identity().items():
            if state.get(name) != ours:
                what = (
                    "the store's rows are not those of the interrupted run (has it been labelled further, or "
                    "again?)"
                    if name == "store"
                    else f"the interrupted run read with {name} {state.get(name)!r}, this one with {ours!r}"
                )
                raise ConfigError(f"{what}: the batches would differ; start a new run")
        epoch, position = state.get("epoch"), state.get("position")
        if not (isinstance(epoch, int) and isinstance(position, int) and 0 <= position <= self.rows):
            raise ConfigError("the reader's state has no valid epoch and position")
        self._epoch, self._position = epoch, position

    def _identity(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "split": self.split,
            "holdout": self.holdout,
            "window_shards": self.window_shards,
            "shuffle": self.shuffle,
            "store": fingerprint(self.blocks, self.store.spec.fingerprint),
            "tokenizer": self.id_map.student.fingerprint if self.id_map else None,
        }

    def _refuse_workers(self) -> None:
        if get_worker_info() is not None:
            raise ConfigError(
                "TargetReader reads ahead in threads by itself: use it directly, or in a DataLoader with "
                "num_workers=0 and batch_size=None"
            )

    def _batches(self, epoch: int, position: int, endless: bool = True) -> Iterator[tuple[Batch, int, int]]:
        """This rank's batches from a row of an epoch on, each with the epoch and position after it."""
        parts: list[Rows] = []
        origins: list[Origin] = []
        filled = 0
        for number, first, order, window, sources in self._windows(epoch, position, endless):
            at = max(0, position - first) if number == epoch else 0
            while at < len(order):
                # Only in an epoch read alone can a batch be short: its last one.
                size = self.batch_rows
                if not endless:
                    size = min(size, self.rows - (first + at - filled))
                low, high = size * self.rank // self.world_size, size * (self.rank + 1) // self.world_size
                step = min(size - filled, len(order) - at)
                ours = order[at + max(low - filled, 0) : at + max(min(high - filled, step), 0)]
                if len(ours):
                    parts.append(window.take(ours))
                    origins += [sources[i] for i in ours.tolist()] if sources else []
                at, filled = at + step, filled + step
                if filled == size:
                    if parts:
                        yield self._collate(parts, origins), number, first + at
                    parts, origins, filled = [], [], 0
            del window, sources  # before the next one is put together

    def _windows(
        self, epoch: int, position: int, endless: bool
    ) -> Iterator[tuple[int, int, npt.NDArray[np.int64], Window, list[Origin]]]:
        """From a row of an epoch on: epoch, the window's first row in it, the order of its rows, the rows,
        and what they are rendered from, if they are.
        """
        pool = ThreadPoolExecutor(min(self.window_shards, 4), thread_name_prefix="decant-read")
        plan = self._plan(epoch, position, endless)
        try:
            upcoming = self._fetch(pool, plan)
            while upcoming is not None:
                number, first, order, futures = upcoming
                del upcoming
                window = Window([part for future in futures for part in future.result()[0]])
                origins = [origin for future in futures for origin in future.result()[1]]
                del futures
                upcoming = self._fetch(pool, plan)
                yield number, first, order, window, origins
                del window, origins
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _plan(
        self, epoch: int, position: int, endless: bool
    ) -> Iterator[tuple[int, int, npt.NDArray[np.int64], list[Block]]]:
        number = epoch
        while endless or number == epoch:
            first = 0
            for window, order in windows(self.blocks, self.seed, number, self.window_shards, self.shuffle):
                if number > epoch or first + len(order) > position:
                    yield number, first, order, window
                first += len(order)
            number += 1

    def _fetch(
        self, pool: ThreadPoolExecutor, plan: Iterator[tuple[int, int, npt.NDArray[np.int64], list[Block]]]
    ) -> tuple[int, int, npt.NDArray[np.int64], list[Future[tuple[list[Rows], list[Origin]]]]] | None:
        for number, first, order, blocks in plan:
            return number, first, order, [pool.submit(self._load, block) for block in blocks]
        return None

    def _load(self, block: Block) -> tuple[list[Rows], list[Origin]]:
        """The rows of a block, as the container cut them, and what they are rendered from, if they are.

        Raises CorruptShard with the shard's name, and as `Replayer.origins`.
        """
        parts = list(self.store.read(block.commit))
        if self.id_map is not None and block.commit.unit not in self._compared:
            self.id_map.check(Rows.concatenate(parts), str(block.commit.shard))
            self._compared.add(block.commit.unit)
        origins = self._replay.origins(Rows.concatenate(parts), block.commit) if self._replay else []
        if len(block) == block.commit.rows:
            return parts, origins
        rows = Rows.concatenate(parts).take(np.arange(block.start, block.stop))
        return [rows], origins[block.start : block.stop]

    def _collate(self, parts: Sequence[Rows], origins: Sequence[Origin]) -> Batch:
        rows = parts[0] if len(parts) == 1 else Rows.concatenate(parts)
        if self._replay is not None:
            rows = self._replay.render(rows, origins)
        inputs, lengths = {}, None
        for name, stored in rows.inputs.items():
            if name in self._recorded:
                continue
            if self.id_map is not None and name == TOKENS:
                stored = self.id_map.tokens(stored)
            if isinstance(stored, Ragged):
                inputs[name] = _tensor(_padded(stored))
                lengths = stored.lengths if lengths is None else lengths
            else:
                inputs[name] = _tensor(stored)
        counts = rows.targets.astype(np.int64)
        heads = [head.name for head in self.spec.heads] if self.heads is None else self.heads
        return Batch(
            spec=self.spec,
            keys=rows.keys,
            inputs=inputs,
            lengths=torch.from_numpy(np.ones(len(rows), dtype=np.int64) if lengths is None else lengths),
            counts=torch.from_numpy(counts),
            row_index=torch.from_numpy(np.repeat(np.arange(len(counts)), counts)),
            position_index=torch.from_numpy(ranges(np.zeros_like(counts), counts)),
            targets={name: to_torch(self._decode(rows, name)) for name in heads},
        )

    def _decode(self, rows: Rows, head: str) -> Targets:
        targets = rows.decode(head)
        return targets if self.id_map is None else self.id_map.targets(targets, rows.spec.head(head))


def _ahead(items: Iterator[T], depth: int) -> Iterator[T]:
    """The same items, up to `depth` of them made ahead in a thread; exceptions arrive where they belong."""
    end: Any = object()
    pool = ThreadPoolExecutor(1, thread_name_prefix="decant-batch")
    try:
        made = deque(pool.submit(next, items, end) for _ in range(depth))
        while (item := made.popleft().result()) is not end:
            made.append(pool.submit(next, items, end))
            yield item
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        items.close()  # type: ignore[attr-defined]


def _padded(ragged: Ragged) -> npt.NDArray[Any]:
    """[rows, longest, ...], zeros after each row's own items."""
    lengths = ragged.lengths
    longest = int(lengths.max(initial=0))
    shape = (len(lengths), longest, *ragged.values.shape[1:])
    if bool((lengths == longest).all()):
        return ragged.values.reshape(shape)
    padded = np.zeros(shape, dtype=ragged.values.dtype)
    padded[np.arange(longest) < lengths[:, None]] = ragged.values
    return padded


def _tensor(array: npt.NDArray[Any]) -> Tensor:
    """A tensor of it; integers that torch has few kernels for become int64."""
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    return torch.from_numpy(np.ascontiguousarray(array))
