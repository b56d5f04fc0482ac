"""From a store to batches of torch tensors: shuffled, deterministic, resumable on any number of ranks.

Knows the store's contract and nothing of models, losses or process groups. Threads, not worker processes,
overlap reading with training: handing batches between processes costs ten times the reading.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch.utils.data import IterableDataset

from pipeline.targets.decoded import Ints
from pipeline.targets.errors import ConfigError, UserError
from pipeline.targets.id_map import IdMap
from pipeline.targets.replay import RECORDED, keeps_ledger, needs_replay
from pipeline.targets.shards import shards_of
from pipeline.targets.spec import Spec
from pipeline.targets.store import Store
from student.batch import Batch as Batch
from student.batch import Collator
from student.batch import has_labels as has_labels
from student.cache import Cache
from student.config import VocabularyConfig
from student.ensemble import averaged_spec
from student.loading import Loader, Teacher
from student.order import Span, Split, blocks_of, bucketed, fingerprint, order_of, spans
from student.prefetch import Cut, Prefetch
from student.replay import Records, Replayer
from student.stream import Stream, in_worker, turns
from student.window import Window

STATE_VERSION = 1


def id_map(vocabulary: VocabularyConfig | None, spec: Spec) -> IdMap | None:
    """How the store's ids become the student's; None where they are the same. Raises as `IdMap.of`."""
    if vocabulary is None:
        return None
    return IdMap.of(spec, vocabulary.tokenizer, vocabulary.store_tokenizer)


class TargetReader(Stream):
    """Reads a store as batches.

    The order of rows is a function of (seed, epoch): shards are permuted, then the rows of each window of
    `window_shards` shards. Global batches of `batch_rows` rows are cut from that order, across window
    borders, and rank r of w takes the r-th of w equal parts of each. So neither the number of ranks nor a
    restart changes what a global batch holds.

    Iterating is endless: epochs follow each other and no row is dropped; the batch at an epoch's end is
    filled with the first rows of the next epoch. `epoch(n)` is one epoch, whose last batch may be smaller.

    Memory holds the window in use, the next one, which threads load meanwhile, and batches made ahead:
    `ahead` at least, or two groups of at most 16 MB; without shuffling `window_shards` shards. Sparse targets
    are decoded as a shard is loaded: 4 bytes more an entry than they have undecoded. Of inputs that are
    replayed it holds the corpus' files, as many as the windows have; a batch's are rendered with the batch,
    by the rank that gets it.

    In a DataLoader (see `student.stream`) each worker loads all shards, so threads alone are faster unless
    inputs are replayed.

    url, options: the store. split: "train", "holdout" or "all"; holdout: share of the shards held out (see
    `student.order.blocks_of`). heads: names of the heads to decode, all by default. shuffle: False reads in
    the order of unit ids. vocabulary: the student's tokenizer; where its ids are others than the store's,
    tokens and targets come in the student's, and `spec` speaks of these. records: how to read a unit of the
    corpus, for a store whose views have a ledger and whose inputs were not kept: they are rendered again.
    cache: where this machine keeps decoded shards for later epochs and other readers. bucket_rows: rows of a
    window's order that are sorted by length, so that those of a batch are about equally long; the batches'
    order stays random. 0 sorts none. Raises UserError for a store or a side of it without rows, ConfigError
    for impossible numbers, SpecMismatch for a tokenizer that the store's ids cannot be mapped to; and while
    iterating CorruptShard with the shard's name, SpecMismatch with the key of a record that the two
    tokenizers cut differently, or that renders to something else than the teacher saw.
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
        cache: Cache | None = None,
        bucket_rows: int = 0,
        teachers: Sequence[str] = (),
    ) -> None:
        if batch_rows < 1 or batch_rows % world_size:
            raise ConfigError(f"batch_rows {batch_rows} cannot be shared equally by {world_size} ranks")
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank {rank} is not one of {world_size}")
        if window_shards < 1 or ahead < 1:
            raise ConfigError("window_shards and ahead must be at least 1")
        if bucket_rows and (not shuffle or bucket_rows < batch_rows):
            raise ConfigError("bucket_rows needs shuffle, and at least the rows of a batch")
        self.store = Store.open(url, options)
        replayer = Replayer(self.store, records) if records and needs_replay(self.store.spec) else None
        self.id_map = id_map(vocabulary, self.store.spec)
        spec = replayer.spec if replayer else self.store.spec
        self.heads = [spec.head(name).name for name in heads or ()]
        if heads is None:
            self.heads = [head.name for head in spec.heads]
        stores = [Store.open(teacher, options) for teacher in teachers]
        mean = averaged_spec([self.store.spec, *(s.spec for s in stores)], self.heads) if stores else None
        if mean is not None:
            spec = replace(spec, heads=mean.heads)
        self.spec = self.id_map.spec(spec) if self.id_map else spec
        """What batches hold: the store's, or in the words of the student's tokenizer."""
        skipped = {item.name for item in RECORDED} if keeps_ledger(self.store.spec) else set()
        self._collate = Collator(self.spec, self.heads, frozenset(skipped), self.id_map, replayer)
        self.blocks = blocks_of(shards_of(self.store), split, holdout)
        others = [Teacher(store, self.blocks.shards.units) for store in stores]
        self.loader = Loader(self.store, cache, self.id_map, replayer, others, mean)
        self.batch_rows, self.rank, self.world_size = batch_rows, rank, world_size
        self.seed, self.split, self.holdout = seed, split, holdout
        self.window_shards, self.shuffle, self.ahead = window_shards, shuffle, ahead
        self.bucket_rows = bucket_rows
        self.rows = int(self.blocks.lengths.sum())
        """Rows of an epoch."""
        if not self.rows:
            raise UserError(
                f"{self.store.url} has no rows for {split!r} with a holdout of {holdout:g}: "
                "label more of the corpus first, or change the holdout"
            )
        self._epoch = self._position = 0
        self._fingerprint = fingerprint(self.blocks, self.store.spec.fingerprint)
        self._teachers = [
            fingerprint(blocks_of(other.shards, "all", 0), other.store.spec.fingerprint) for other in others
        ]

    def _turns(self, workers: int) -> Iterator[Batch]:
        wanted = itertools.cycle([True, *itertools.repeat(False, workers - 1)])
        for batch, cut in self._batches(self._epoch, self._position, endless=True, wanted=wanted):
            self._epoch, self._position = cut.epoch, cut.position
            self.skip(workers - 1)
            yield batch

    def picked(self, wanted: Iterable[bool]) -> Iterator[Batch]:
        """Of the batches from where the state stands those that are wanted, to its end; the state stays."""
        return (batch for batch, _ in self._batches(self._epoch, self._position, True, wanted))

    def epoch(self, number: int) -> Iterator[Batch]:
        """All rows once, in the order of that epoch; the state does not move.

        A last batch of fewer rows is shared as equally as it goes, so a rank may get one batch less.
        DataLoaders' workers take turns, as when iterating.
        """
        for batch, _ in self._batches(number, 0, False, turns()):
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
        for name, ours in {"teachers": None, "buckets": None, **self._identity()}.items():
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
        self._own = in_worker()

    def _identity(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "split": self.split,
            "holdout": self.holdout,
            "window_shards": self.window_shards,
            "shuffle": self.shuffle,
            "store": self._fingerprint,
            "tokenizer": self.id_map.student.fingerprint if self.id_map else None,
            **({"teachers": self._teachers} if self._teachers else {}),
            # Only where there are buckets does the order depend on the batches' size.
            **({"buckets": [self.bucket_rows, self.batch_rows]} if self.bucket_rows else {}),
        }

    def skip(self, batches: int) -> None:
        """Moves the state on past so many batches, of all ranks, which are not read."""
        self._epoch, self._position = self._after(self._epoch, self._position, batches)

    def advanced(self, state: Mapping[str, Any], batches: int) -> dict[str, Any]:
        """The state that comes so many batches after another."""
        epoch, position = self._after(state["epoch"], state["position"], batches)
        return {**state, "epoch": epoch, "position": position}

    def _after(self, epoch: int, position: int, batches: int) -> tuple[int, int]:
        epochs, position = divmod(position + batches * self.batch_rows, self.rows)
        return epoch + epochs, position

    def _batches(
        self, epoch: int, position: int, endless: bool, wanted: Iterable[bool] = itertools.repeat(True)
    ) -> Iterator[tuple[Batch, Cut]]:
        """This rank's batches from a row of an epoch on, those that are wanted."""
        planned, walked = itertools.tee(self._spans(epoch, position, endless))
        cuts = self._cuts(walked, epoch, position, endless)
        depth = 1 if self.shuffle else self.window_shards - 1
        prefetch = Prefetch(
            self.blocks, self.loader, self._order, self._collate, depth=max(1, depth), ahead=self.ahead
        )
        ours = (cut for cut in itertools.compress(cuts, wanted) if cut.pieces)
        yield from prefetch.run(planned, ours)

    def _spans(self, epoch: int, position: int, endless: bool) -> Iterator[Span]:
        for number in itertools.count(epoch) if endless else (epoch,):
            start = position if number == epoch else 0
            yield from spans(self.blocks, self.seed, number, self.window_shards, self.shuffle, start)

    def _order(self, span: Span, window: Window) -> Ints:
        order = order_of(span, self.seed, self.shuffle)
        if self.bucket_rows:
            return bucketed(order, window.lengths, self.bucket_rows, self.batch_rows, self.seed, span)
        return order

    def _cuts(self, walked: Iterator[Span], epoch: int, position: int, endless: bool) -> Iterator[Cut]:
        """This rank's share of each global batch. Only in an epoch read alone can one be short: its last."""
        pieces: list[tuple[Span, int, int]] = []
        filled = 0
        for span in walked:
            at = max(0, position - span.first) if span.epoch == epoch else 0
            while at < span.rows:
                size = self.batch_rows
                if not endless:
                    size = min(size, self.rows - (span.first + at - filled))
                low, high = size * self.rank // self.world_size, size * (self.rank + 1) // self.world_size
                step = min(size - filled, span.rows - at)
                start, stop = at + max(low - filled, 0), at + max(min(high - filled, step), 0)
                if start < stop:
                    pieces.append((span, start, stop))
                at, filled = at + step, filled + step
                if filled == size:
                    yield Cut(pieces, span.epoch, span.first + at)
                    pieces, filled = [], 0


class Epoch(IterableDataset[Batch]):
    """An epoch of a reader as the dataset of a DataLoader (batch_size=None): to evaluate a student on."""

    def __init__(self, reader: TargetReader, number: int = 0) -> None:
        self._reader, self._number = reader, number

    def __iter__(self) -> Iterator[Batch]:
        return self._reader.epoch(self._number)
