"""Stages that overlap: an iterable runs ahead of its consumer in a thread of its own.

It knows iterables and threads. What flows, it does not know.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def prefetch(items: Iterable[T], depth: int) -> Generator[T, None, None]:
    """The same items in the same order, made by a thread that is at most `depth` items ahead.

    The thread starts with the first `next`. What the iterable raises is raised here, after the items before
    it and with its own traceback. When the consumer stops early (`close`, or the generator is dropped), the
    thread ends after the item it is making, the iterable is closed in that thread, and `close` waits for it.
    Stages may be chained: closing the last one closes all.
    """
    if depth < 1:
        raise ValueError(f"depth: at least 1, got {depth}")
    return _consume(items, depth)


def chunks(items: Iterable[T], size: int) -> Generator[list[T], None, None]:
    """Lists of `size` consecutive items, the last one shorter: fewer hand-overs between two stages.

    What the iterable raises comes after the items before it.
    """
    chunk: list[T] = []
    iterator = iter(items)
    try:
        while True:
            try:
                chunk.append(next(iterator))
            except StopIteration:
                break
            except BaseException:
                if chunk:
                    yield chunk
                raise
            if len(chunk) == size:
                yield chunk
                chunk = []
        if chunk:
            yield chunk
    finally:
        _close(iterator)


def _consume(items: Iterable[T], depth: int) -> Generator[T, None, None]:
    channel: _Channel[T] = _Channel(depth)
    # A daemon, so that a generator that was abandoned half-way cannot keep the process from leaving. Nothing
    # is lost with it: whatever it raises goes through the channel.
    thread = threading.Thread(target=_produce, args=(items, channel), name="decant-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            try:
                item = channel.get()
            except _Ended:
                break
            yield item
            del item  # not held while the next one is awaited
    except BaseException:  # the consumer stops, or is interrupted
        # An error of an item that it never asked for is none; one of closing the source is.
        channel.close()
        thread.join()
        channel.error = None
        raise
    finally:
        channel.close()
        thread.join()
        error, channel.error = channel.error or channel.close_error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback holds this frame: without this, a cycle


def _produce(items: Iterable[T], channel: _Channel[T]) -> None:
    error: BaseException | None = None
    try:
        iterator = iter(items)
        try:
            for item in iterator:
                if not channel.put(item):
                    break
                del item
        except BaseException as raised:  # noqa: BLE001 - it is raised again in the consumer
            error = raised
        _close(iterator)
    except BaseException as raised:  # noqa: BLE001 - it is raised again in the consumer
        channel.close_error = raised
    finally:
        channel.end(error)


def _close(iterator: Any) -> None:
    close = getattr(iterator, "close", None)
    if close is not None:
        close()


class _Ended(Exception):
    """No item will come."""


class _Channel(Generic[T]):
    """A bounded queue whose two ends can both be closed, which queue.Queue cannot before Python 3.13."""

    def __init__(self, depth: int) -> None:
        self.error: BaseException | None = None
        self.close_error: BaseException | None = None
        self._depth = depth
        self._items: deque[T] = deque()
        self._ended = self._closed = False
        lock = threading.Lock()
        self._room, self._news = threading.Condition(lock), threading.Condition(lock)

    def put(self, item: T) -> bool:
        """Waits for room. False when the consumer has gone."""
        with self._room:
            while len(self._items) >= self._depth and not self._closed:
                self._room.wait()
            if self._closed:
                return False
            self._items.append(item)
            self._news.notify()
            return True

    def end(self, error: BaseException | None) -> None:
        """The producer has no more, or failed."""
        with self._news:
            self.error, self._ended = error, True
            self._news.notify()

    def get(self) -> T:
        """Waits for an item. Raises _Ended after the last one."""
        with self._news:
            while not self._items and not self._ended:
                self._news.wait()
            if not self._items:
                raise _Ended
            item = self._items.popleft()
            self._room.notify()
            return item

    def close(self) -> None:
        """The consumer has gone; what waits is dropped."""
        with self._room:
            self._closed = True
            self._items.clear()
            self._room.notify()
