"""Views become batches: windows in corpus order, and inside a window batches of like length.

It knows records and views, and nothing of models or targets. What comes out is a function of what goes in, so
that a unit that is labelled again meets the teacher in the same batches.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pipeline.corpus.base import Filtered, Read, Record
from pipeline.stream import Watch, ordered
from pipeline.targets.spec import Input
from pipeline.targets.unit import Quarantined
from pipeline.teachers.base import Batch
from pipeline.views.base import Rejected, Renderer, View, stack


@dataclass(frozen=True)
class Item:
    """One view, and which of its record's views it is. row: ordinal of the record in the unit."""

    key: str
    row: int
    view: int
    views: int
    content: View

    def quarantined(self, code: str, reason: str) -> Quarantined:
        """This view, without a target."""
        return Quarantined(self.key, self.row, self.view, code, reason)


@dataclass
class Window:
    """Consecutive views, what came between them without a view, and how many records ended here.

    filtered: records that the source's filters left out, which are not among `records`.
    """

    items: list[Item] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)
    records: int = 0
    filtered: int = 0


@dataclass(frozen=True)
class Part:
    """Some views of a window as a batch.

    positions: their places in the window, int64 [views]. packed: whether the teacher computes several in a
    row, so that they need no padding.
    """

    items: Sequence[Item]
    positions: npt.NDArray[np.int64]
    batch: Batch
    packed: bool = False

    def __len__(self) -> int:
        return len(self.items)

    @property
    def size(self) -> int:
        """What it takes of a batch's budget, padding included: tokens, or views of a fixed size."""
        sizes = [item.content.size for item in self.items]
        return sum(sizes) if self.packed else len(sizes) * max(sizes)

    def take(self, chosen: slice) -> Part:
        """Some of its views, without padding that none of them needs."""
        lengths, longest = self.batch.lengths[chosen], int(self.batch.lengths.max())
        extent = int(lengths.max())
        inputs = {
            name: array[chosen, :extent] if extent < longest else array[chosen]
            for name, array in self.batch.inputs.items()
        }
        return Part(self.items[chosen], self.positions[chosen], Batch(inputs, lengths), self.packed)


Rendered = Sequence[Item] | Quarantined | Filtered
"""What became of a record."""


def render(
    records: Iterable[Iterable[Read]], renderer: Renderer, threads: int = 1, watch: Watch | None = None
) -> Iterator[Sequence[Rendered]]:
    """Views of records, group by group. records: in order, in groups of any size.

    threads: that render groups side by side. watch: told of the stage "views" what they do.
    """

    def each(group: Sequence[tuple[Read, Sequence[Record]]]) -> Sequence[Rendered]:
        return [_views(record, before, renderer) for record, before in group]

    return ordered(each, _with_earlier(records, renderer.reach), threads, "views", watch)


def _with_earlier(
    records: Iterable[Iterable[Read]], reach: int
) -> Iterator[list[tuple[Read, Sequence[Record]]]]:
    """Each record with those before it that its views may be mixed with."""
    earlier: deque[Record] = deque(maxlen=reach)
    for group in records:
        found: list[tuple[Read, Sequence[Record]]] = []
        for record in group:
            found.append((record, tuple(earlier)))
            if isinstance(record, Record):
                earlier.append(record)
        yield found


def _views(record: Read, earlier: Sequence[Record], renderer: Renderer) -> Rendered:
    if not isinstance(record, Record):
        return record
    try:
        views = renderer.render(record, earlier)
    except Rejected as error:
        return Quarantined(record.key, record.row, None, error.code, error.reason)
    return [Item(record.key, record.row, number, len(views), view) for number, view in enumerate(views)]


def windows(rendered: Iterable[Sequence[Rendered]], content: int) -> Iterator[Window]:
    """Windows whose views together have a size of at least `content`, the last one less."""
    window, size = Window(), 0
    for group in rendered:
        for found in group:
            if isinstance(found, Filtered):
                window.filtered += 1
                continue
            window.records += 1
            if isinstance(found, Quarantined):
                window.quarantined.append(found)
                continue
            for item in found:
                window.items.append(item)
                size += item.content.size
                if size >= content:
                    yield window
                    window, size = Window(), 0
    if window.records or window.items or window.filtered:
        yield window


def batches(
    window: Window, inputs: Sequence[Input], budget: int, packing: int | None = None
) -> Iterator[Part]:
    """The window's views, longest first, as batches of at most `budget` after padding.

    packing: tokens of a row, of which a batch then has as many as the budget allows, views of all lengths in
    it. A view that alone is larger is a batch, or a row, by itself.
    """
    sizes = np.array([item.content.size for item in window.items], dtype=np.int64)
    if packing is not None:
        rows, start = filled(sizes, packing), 0
        while start < len(rows):
            count = max(1, budget // max(packing, int(sizes[rows[start][0]])))
            chosen = np.array([i for row in rows[start : start + count] for i in row], dtype=np.int64)
            yield collate([window.items[i] for i in chosen], chosen, inputs, packed=True)
            start += count
        return
    order = np.argsort(-sizes, kind="stable")
    start = 0
    while start < len(order):
        count = max(1, budget // int(sizes[order[start]]))
        yield collate(
            [window.items[i] for i in order[start : start + count]], order[start : start + count], inputs
        )
        start += count


def filled(sizes: npt.NDArray[np.int64], capacity: int) -> list[list[int]]:
    """Rows of views of at most `capacity` together, by their places: best fit decreasing, wasting little.

    No row's first view fits into the row before it, so whoever fills rows in this order has the same ones.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # what is left of each row, least first
    for i in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[i])
        at = bisect_left(room, (size, -1))
        left, row = room.pop(at) if at < len(room) else (capacity, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(i)
        insort(room, (left - size, row))
    return rows


def collate(
    items: Sequence[Item], positions: npt.NDArray[np.int64], inputs: Sequence[Input], packed: bool = False
) -> Part:
    """A batch padded with zeros. Its lengths are those of the input whose extent varies, 1 if none does."""
    views = [item.content for item in items]
    lengths = np.ones(len(views), dtype=np.int64)
    arrays = {}
    for declared in inputs:
        arrays[declared.name], extents = stack(views, declared.name)
        if declared.shape and declared.shape[0] is None:
            lengths = extents
    return Part(items, positions, Batch(arrays, lengths), packed)
