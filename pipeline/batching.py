"""Views become batches: windows in corpus order, and inside a window batches of like length.

It knows records and views, and nothing of models or targets. What comes out is a function of what goes in, so
that a unit that is labelled again meets the teacher in the same batches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pipeline.corpus.base import Filtered, Read, Record
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
    """Some views of a window as a batch. positions: their places in the window, int64 [views]."""

    items: Sequence[Item]
    positions: npt.NDArray[np.int64]
    batch: Batch

    def __len__(self) -> int:
        return len(self.items)

    @property
    def size(self) -> int:
        """What it takes of a batch's budget, padding included: tokens, or views of a fixed size."""
        return len(self) * max(item.content.size for item in self.items)

    def take(self, chosen: slice) -> Part:
        """Some of its views, without padding that none of them needs."""
        lengths, longest = self.batch.lengths[chosen], int(self.batch.lengths.max())
        extent = int(lengths.max())
        inputs = {
            name: array[chosen, :extent] if extent < longest else array[chosen]
            for name, array in self.batch.inputs.items()
        }
        return Part(self.items[chosen], self.positions[chosen], Batch(inputs, lengths))


def windows(records: Iterable[Iterable[Read]], renderer: Renderer, content: int) -> Iterator[Window]:
    """Windows whose views together have a size of at least `content`, the last one less.

    records: in order, in groups of any size.
    """
    window, size = Window(), 0
    earlier: deque[Record] = deque(maxlen=renderer.reach)
    for group in records:
        for record in group:
            if isinstance(record, Filtered):
                window.filtered += 1
                continue
            window.records += 1
            if isinstance(record, Quarantined):
                window.quarantined.append(record)
                continue
            try:
                views = renderer.render(record, tuple(earlier))
            except Rejected as error:
                reason = Quarantined(record.key, record.row, None, error.code, error.reason)
                window.quarantined.append(reason)
                continue
            finally:
                earlier.append(record)
            for number, view in enumerate(views):
                window.items.append(Item(record.key, record.row, number, len(views), view))
                size += view.size
                if size >= content:
                    yield window
                    window, size = Window(), 0
    if window.records or window.items or window.filtered:
        yield window


def batches(window: Window, inputs: Sequence[Input], budget: int) -> Iterator[Part]:
    """The window's views, longest first, as batches of at most `budget` after padding.

    A view that alone is larger is a batch by itself.
    """
    sizes = np.array([item.content.size for item in window.items], dtype=np.int64)
    order = np.argsort(-sizes, kind="stable")
    start = 0
    while start < len(order):
        count = max(1, budget // int(sizes[order[start]]))
        yield collate(
            [window.items[i] for i in order[start : start + count]], order[start : start + count], inputs
        )
        start += count


def collate(items: Sequence[Item], positions: npt.NDArray[np.int64], inputs: Sequence[Input]) -> Part:
    """A batch padded with zeros. Its lengths are those of the input whose extent varies, 1 if none does."""
    views = [item.content for item in items]
    lengths = np.ones(len(views), dtype=np.int64)
    arrays = {}
    for declared in inputs:
        arrays[declared.name], extents = stack(views, declared.name)
        if declared.shape and declared.shape[0] is None:
            lengths = extents
    return Part(items, positions, Batch(arrays, lengths))
