"""Windows loaded and batches made ahead of their use, in threads. Nothing is handed between processes.

Knows spans and places in their order; which batches there are to be is the caller's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from pipeline.targets.decoded import Ints
from pipeline.targets.memory import keep_freed_memory
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


class Prefetch:
    """Makes batches of blocks.

    order: of a window's rows, int64 [rows]. depth: spans that are loaded behind the one in use; what comes
    after these is loaded when the last batch of the one before is made, so that no more are in memory.
    ahead: batches made before they are asked for.
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
        self._blocks, self._loader, self._order, self._collate = blocks, loader, order, collate
        self._depth, self._ahead = depth, ahead

    def run(self, spans: Iterator[Span], cuts: Iterable[Cut]) -> Iterator[tuple[Batch, Cut]]:
        """The batches of the cuts, in order. The cuts' pieces walk through the spans, the same objects.

        An exception arrives in the place of the batch that it is of.
        """
        keep_freed_memory()
        loaders = ThreadPoolExecutor(LOADING, thread_name_prefix="decant-load")
        makers = ThreadPoolExecutor(MAKING, thread_name_prefix="decant-batch")
        loading: deque[tuple[Span, Future[_Ready]]] = deque()
        made: deque[tuple[Future[Batch], Cut]] = deque()
        gate: Future[Batch] | None = None

        def begin() -> bool:
            """Load the next span, if there is one."""
            for span in spans:
                parts = [loaders.submit(self._load, int(block), gate) for block in span.blocks]
                loading.append((span, loaders.submit(self._gather, span, parts)))
                return True
            return False

        try:
            for cut in cuts:
                pieces, left = [], False
                for span, start, stop in cut.pieces:
                    while not loading or loading[0][0] is not span:
                        if loading:
                            loading.popleft()
                            left = True
                        else:
                            begin()
                    pieces.append((loading[0][1], start, stop))
                made.append((makers.submit(self._make, pieces), cut))
                del pieces  # they keep windows in memory
                if left:
                    gate = made[-1][0]
                while len(loading) <= self._depth and begin():
                    pass
                if len(made) > self._ahead:
                    yield self._next(made)
            while made:
                yield self._next(made)
        finally:
            # What waits in line is cancelled first, so that whoever waits for it goes on.
            loaders.shutdown(wait=False, cancel_futures=True)
            makers.shutdown(wait=True, cancel_futures=True)
            loaders.shutdown(wait=True)

    @staticmethod
    def _next(made: deque[tuple[Future[Batch], Cut]]) -> tuple[Batch, Cut]:
        future, cut = made.popleft()
        return future.result(), cut

    def _load(self, block: int, gate: Future[Batch] | None) -> Loaded:
        if gate is not None:
            gate.exception()  # whatever it is, it is told in its own place
        return self._loader.load(self._blocks[block])

    def _gather(self, span: Span, parts: Sequence[Future[Loaded]]) -> _Ready:
        loaded = [part.result() for part in parts]
        window = Window([each.table for each in loaded])
        return _Ready(
            window, self._order(span, window), [origin for each in loaded for origin in each.origins]
        )

    def _make(self, pieces: list[tuple[Future[_Ready], int, int]]) -> Batch:
        tables, origins = [], []
        for future, start, stop in pieces:
            ready = future.result()
            rows = ready.order[start:stop]
            tables.append(ready.window.take(rows))
            origins += [ready.origins[row] for row in rows.tolist()] if ready.origins else []
        # Whoever waits for the batch may load the next window, so these are let go before it is told.
        pieces.clear()
        del future, ready
        return self._collate(Table.concatenate(tables), origins)
