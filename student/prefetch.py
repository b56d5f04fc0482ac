"""Windows loaded and batches made ahead of their use, in threads. Nothing is handed between processes.

Knows spans and places in their order; which batches there are to be is the caller's.
"""

from __future__ import annotations

import itertools
import operator
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from pipeline.targets.decoded import Ints
from pipeline.targets.memory import keep_freed_memory
from pipeline.targets.ragged import offsets_of
from student.batch import Batch, Collator
from student.loading import Loaded, Loader
from student.order import Blocks, Span
from student.replay import Origin
from student.table import Table
from student.window import Window

LOADING = 4
"""Threads that read, check and decode shards."""

MAKING = 2
"""Threads that make batches of what was loaded."""

TOGETHER, TOGETHER_BYTES = 16, 2**24
"""Batches that are made at a time, at most, and their bytes: what a batch costs beside the copying of its
bytes is Python's calls and a change of threads."""


@dataclass(frozen=True)
class Cut:
    """A batch to be made. pieces: spans, and places start..stop in the order of each. epoch, position: where
    the reader stands once it is taken.
    """

    pieces: Sequence[tuple[Span, int, int]]
    epoch: int
    position: int


@dataclass(frozen=True)
class _Ready:
    """A span in memory."""

    window: Window
    order: Ints
    origins: list[Origin]


@dataclass
class _Group:
    """Batches that are made together: several of one window, or one alone that spans windows.

    pieces: of all of them, one after the other; sizes: rows of each.
    """

    cuts: list[Cut] = field(default_factory=list)
    pieces: list[tuple[Future[_Ready], int, int]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def add(self, cut: Cut, pieces: Sequence[tuple[Future[_Ready], int, int]]) -> None:
        self.cuts.append(cut)
        self.pieces += pieces
        self.sizes.append(sum(stop - start for _, start, stop in pieces))


@dataclass(frozen=True)
class _Made:
    """What became of a group. batches: each, or why there is none."""

    batches: Sequence[Batch | Exception]

    @property
    def nbytes(self) -> int:
        """Of all of them."""
        return sum(batch.nbytes for batch in self.batches if isinstance(batch, Batch))


class Prefetch:
    """Makes batches of blocks.

    order: of a window's rows, int64 [rows]. depth: spans that are loaded behind the one in use; what comes
    after these is loaded when the last batch of the one before is made, so that no more are in memory.
    ahead: batches made before they are asked for, at least.
    """

    def __init__(
        self,
        blocks: Blocks,
        loader: Loader,
        order: Callable[[Span, Window], Ints],
        collate: Collator,
        *,
        depth: int,
        ahead: int,
    ) -> None:
        self._depth, self._ahead = depth, ahead
        self._work = _Work(blocks, loader, order, collate)

    def run(self, spans: Iterator[Span], cuts: Iterable[Cut]) -> Iterator[tuple[Batch, Cut]]:
        """The batches of the cuts, in order. The cuts' pieces walk through the spans, the same objects.

        An exception arrives in the place of the batch that it is of.
        """
        keep_freed_memory()
        with _Pass(self._work, spans, self._depth, self._ahead) as begun:
            yield from begun.batches(cuts)


class _Pass:
    """One walk through spans, with its threads while it is entered."""

    def __init__(self, work: _Work, spans: Iterator[Span], depth: int, ahead: int) -> None:
        self._work, self._spans = work, spans
        self._depth, self._ahead = depth, ahead
        self._loaders = ThreadPoolExecutor(LOADING, thread_name_prefix="decant-load")
        self._makers = ThreadPoolExecutor(MAKING, thread_name_prefix="decant-batch")
        self._loading: deque[tuple[Span, Future[_Ready]]] = deque()
        """The span in use, and those behind it."""
        self._making: deque[tuple[_Group, Future[_Made]]] = deque()
        self._group, self._together = _Group(), 1
        """The group that is filled, and how many batches fill it."""
        self._gate: Future[_Made] | None = None
        """What has to be made before more is loaded."""

    def __enter__(self) -> _Pass:
        return self

    def __exit__(self, *_: object) -> None:
        # What waits in line is cancelled first, so that whoever waits for it goes on.
        self._loaders.shutdown(wait=False, cancel_futures=True)
        self._makers.shutdown(wait=True, cancel_futures=True)
        self._loaders.shutdown(wait=True)

    def batches(self, cuts: Iterable[Cut]) -> Iterator[tuple[Batch, Cut]]:
        """See `Prefetch.run`."""
        for cut in cuts:
            pieces, left = self._pieces(cut)
            alone = left or len(pieces) > 1
            if alone:
                self._make()
            self._group.add(cut, pieces)
            del pieces  # they keep windows in memory
            if alone or len(self._group.cuts) >= self._together:
                self._make()
            if left:
                self._gate = self._making[-1][1]
            while len(self._loading) <= self._depth and self._begin():
                pass
            while self._enough():
                yield from self._made()
        self._make()
        while self._making:
            yield from self._made()

    def _pieces(self, cut: Cut) -> tuple[list[tuple[Future[_Ready], int, int]], bool]:
        """A cut's pieces of spans that are loaded or will be, and whether a span was left for them."""
        pieces, left = [], False
        for span, start, stop in cut.pieces:
            while not self._loading or self._loading[0][0] is not span:
                if self._loading:
                    self._loading.popleft()
                    left = True
                else:
                    self._begin()
            pieces.append((self._loading[0][1], start, stop))
        return pieces, left

    def _begin(self) -> bool:
        """Load the next span, if there is one."""
        span = next(self._spans, None)
        if span is None:
            return False
        parts = [self._loaders.submit(self._work.load, int(block), self._gate) for block in span.blocks]
        self._loading.append((span, self._loaders.submit(self._work.gather, span, parts)))
        return True

    def _make(self) -> None:
        """Make the group's batches, and begin another group."""
        if self._group.cuts:
            made = self._makers.submit(self._work.make, self._group.pieces, self._group.sizes)
            self._making.append((self._group, made))
            self._group = _Group()

    def _made(self) -> Iterator[tuple[Batch, Cut]]:
        """The oldest group's batches. Later groups are larger, unless that would be too much."""
        oldest, future = self._making.popleft()
        found = future.result()
        if found.nbytes > TOGETHER_BYTES:
            self._together = max(1, self._together // 2)
        elif len(oldest.cuts) == self._together and 2 * found.nbytes <= TOGETHER_BYTES:
            self._together = min(2 * self._together, TOGETHER)
        for batch, cut in zip(found.batches, oldest.cuts, strict=True):
            if isinstance(batch, Exception):
                raise batch
            yield batch, cut

    def _enough(self) -> bool:
        """Whether the oldest group can be taken, while those behind it keep the makers at work."""
        making = self._making
        return len(making) > MAKING and sum(len(group.cuts) for group, _ in making) > self._ahead


class _Work:
    """What the threads do."""

    def __init__(
        self, blocks: Blocks, loader: Loader, order: Callable[[Span, Window], Ints], collate: Collator
    ) -> None:
        self._blocks, self._loader, self._order, self._collate = blocks, loader, order, collate

    def load(self, block: int, gate: Future[_Made] | None) -> Loaded:
        """A block, once the batches before the gate are made."""
        if gate is not None:
            gate.exception()  # whatever it is, it is told in its own place
        return self._loader.load(self._blocks[block])

    def gather(self, span: Span, parts: Sequence[Future[Loaded]]) -> _Ready:
        """A span's blocks as a window."""
        loaded = [part.result() for part in parts]
        window = Window([each.table for each in loaded])
        return _Ready(
            window, self._order(span, window), [origin for each in loaded for origin in each.origins]
        )

    def make(self, pieces: list[tuple[Future[_Ready], int, int]], sizes: Sequence[int]) -> _Made:
        """Batches of so many rows out of the pieces, which are emptied."""
        try:
            table, origins = self._taken(pieces)
        except Exception as error:  # noqa: BLE001 - told to whoever takes the first of the batches
            return _Made([error] * len(sizes))
        finally:
            # Whoever waits for the batches may load the next window: this one is let go before they are told.
            pieces.clear()
        try:
            return _Made(self._collate(table, origins, sizes))
        except Exception as error:  # noqa: BLE001 - in the place of the batch that it is of
            return _Made([error] if len(sizes) == 1 else self._alone(table, origins, sizes))

    @staticmethod
    def _taken(pieces: Sequence[tuple[Future[_Ready], int, int]]) -> tuple[Table, list[Origin]]:
        tables, origins = [], []
        for future, places in itertools.groupby(pieces, key=operator.itemgetter(0)):
            ready = future.result()
            rows = np.concatenate([ready.order[start:stop] for _, start, stop in places])
            tables.append(ready.window.take(rows))
            origins += [ready.origins[row] for row in rows.tolist()] if ready.origins else []
        return Table.concatenate(tables), origins

    def _alone(
        self, table: Table, origins: Sequence[Origin], sizes: Sequence[int]
    ) -> list[Batch | Exception]:
        """Each batch by itself, or why it cannot be made."""
        found: list[Batch | Exception] = []
        for start, stop in itertools.pairwise(offsets_of(np.asarray(sizes)).tolist()):
            try:
                found += self._collate(table.slice(start, stop), origins[start:stop], [stop - start])
            except Exception as error:  # noqa: BLE001 - as above
                found.append(error)
        return found
