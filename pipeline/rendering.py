"""The first half of labelling: a unit is read and rendered, here or by another process.

It knows corpora and views, and nothing of models or targets, so it needs no accelerator. What comes out is a
function of the unit: whoever renders it, in whatever pieces, gives the same records in the same order.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from types import MappingProxyType

from pipeline.batching import Rendered, render
from pipeline.corpus.base import Read, Source
from pipeline.profile import Profile
from pipeline.stream import Watch, chunks, prefetch
from pipeline.targets.unit import Quarantined, Unit
from pipeline.views.base import Renderer

READ_CHUNK = 16
"""Records that pass from the reader to the views at a time."""

NOTHING: Mapping[int, str] = MappingProxyType({})


@dataclass(frozen=True)
class Chunk:
    """Consecutive records of a unit, rendered by another process.

    before: how many of the unit came before. profile: what its time was spent on since the chunk before, if
    the job wants to know. last: none follows.
    """

    rendered: Sequence[Rendered]
    before: int
    profile: Profile | None = None
    last: bool = False


class FeedLost(Exception):
    """What rendered for this process is gone, in a sentence how; what it gave before is good."""


Feed = Callable[[Unit], Generator[Chunk, None, None]]
"""What another process renders of a unit. Raises FeedLost, and what reading and rendering raise."""


def records_of(corpus: Source, unit: Unit, skip: Mapping[int, str] = NOTHING) -> Iterator[Read]:
    """The records of a unit. skip: rows that are quarantined as "killed", each with the reason."""
    for record in corpus.read(unit):
        reason = skip.get(record.row)
        yield record if reason is None else Quarantined(record.key, record.row, None, "killed", reason)


def rendered(
    records: Iterable[Read], renderer: Renderer, threads: int, depth: int, watch: Watch | None = None
) -> Iterator[Sequence[Rendered]]:
    """Views of records, which are read ahead in a thread of their own: the stage "read".

    threads: that render side by side. depth: groups of records that may wait. watch: see `render`.
    """
    return render(prefetch(chunks(records, READ_CHUNK), depth, "read", watch), renderer, threads, watch)


def fed(
    feed: Generator[Chunk, None, None],
    rest: Callable[[], Iterable[Sequence[Rendered]]],
    spent: Callable[[Profile], None] | None = None,
) -> Generator[Sequence[Rendered], None, None]:
    """What another process renders, and from where it is lost what `rest` renders: all records exactly once.

    rest: the whole unit again, of which the records that came before are dropped. spent: told of profiles.
    """
    done = 0
    try:
        with closing(feed):
            for chunk in feed:
                if chunk.before != done:
                    raise FeedLost(f"a chunk after {chunk.before} records came after {done}")
                if spent is not None and chunk.profile is not None:
                    spent(chunk.profile)
                done += len(chunk.rendered)
                yield chunk.rendered
        return
    except FeedLost as lost:
        logging.getLogger(__name__).warning("%s; this replica goes on by itself after %d records", lost, done)
    for group in rest():
        yield group[done:]
        done = max(0, done - len(group))


def pieces(groups: Iterable[Sequence[Rendered]], limit: int) -> Iterator[Sequence[Rendered]]:
    """The same records in groups of at most `limit` bytes of inputs; one that has more is alone."""
    for group in groups:
        begin = size = 0
        for end, found in enumerate(group):
            more = _bytes(found)
            if end > begin and size + more > limit:
                yield group[begin:end]
                begin, size = end, 0
            size += more
        yield group[begin:]


def _bytes(found: Rendered) -> int:
    if not isinstance(found, Sequence):
        return 0
    return sum(array.nbytes for item in found for array in item.content.inputs.values())
