"""Stages that overlap: an iterable runs ahead of its consumer in a thread of its own.

It knows iterables and threads. What flows, it does not know.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T")
U = TypeVar("U")


class Watch(Protocol):
    """What is told how a stage spends its time. Moments are of `time.time`, durations in seconds."""

    def worked(self, stage: str, begin: float, end: float, starved: float) -> None:
        """It made an item in between, but for what it waited for the stage before it."""
        ...

    def blocked(self, stage: str, seconds: float) -> None:
        """It waited for room."""
        ...


def prefetch(
    items: Iterable[T], depth: int, stage: str = "", watch: Watch | None = None
) -> Generator[T, None, None]:
    """The same items in the same order, made by a thread that is at most `depth` items ahead.

    watch: told, under the name `stage`, what the thread's time is spent on.

    The thread starts with the first `next`. What the iterable raises is raised here, after the items before
    it and with its own traceback. When the consumer stops early (`close`, or the generator is dropped), the
    thread ends after the item it is making, the iterable is closed in that thread, and `close` waits for it.
    Stages may be chained: closing the last one closes all.
    """
    if depth < 1:
        raise ValueError(f"depth: at least 1, got {depth}")
    return _consume(items if watch is None else _watched(items, stage, watch), depth, stage, watch)


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


def ordered(
    work: Callable[[T], U], items: Iterable[T], threads: int, stage: str = "", watch: Watch | None = None
) -> Generator[U, None, None]:
    """`work` of each item, in the order of the items, done by so many threads.

    At most one item more than there are threads is taken ahead. What `work` or the iterable raises is raised
    here, after what came before it. stage, watch: as in `prefetch`.
    """
    if threads == 1:
        alone = iter(items)
        try:
            yield from map(work, alone)
        finally:
            _close(alone)
        return

    def watched(item: T) -> U:
        begin = time.time()
        try:
            return work(item)
        finally:
            if watch is not None:
                watch.worked(stage, begin, time.time(), 0.0)

    def finished(future: Future[U]) -> U:
        with waiting():
            return future.result()

    iterator, error = iter(items), None
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decant-ordered")
    ahead: deque[Future[U]] = deque()
    try:
        while error is None:
            try:
                ahead.append(pool.submit(watched, next(iterator)))
            except BaseException as raised:  # noqa: BLE001 - it is raised again below
                error = raised
            if len(ahead) > threads:
                yield finished(ahead.popleft())
        while ahead:
            yield finished(ahead.popleft())
        if not isinstance(error, StopIteration):
            raise error
    finally:
        pool.shutdown(cancel_futures=True)
        _close(iterator)


def _watched(items: Iterable[T], stage: str, watch: Watch) -> Generator[T, None, None]:
    """The same items, each with a word of how long it took."""
    iterator = iter(items)
    try:
        while True:
            begin, waited = time.time(), _waited()
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                watch.worked(stage, begin, time.time(), _waited() - waited)
            yield item
            del item
    finally:
        _close(iterator)


_waits = threading.local()


def _waited() -> float:
    """Seconds that this thread has waited for items."""
    return getattr(_waits, "seconds", 0.0)


@contextmanager
def waiting() -> Iterator[None]:
    """While entered, this thread waits for items, and does not work."""
    began = time.time()
    try:
        yield
    finally:
        _waits.seconds = _waited() + time.time() - began


def _consume(items: Iterable[T], depth: int, stage: str, watch: Watch | None) -> Generator[T, None, None]:
    blocked = None if watch is None else functools.partial(watch.blocked, stage)
    channel: _Channel[T] = _Channel(depth, blocked)
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

    def __init__(self, depth: int, blocked: Callable[[float], None] | None) -> None:
        """blocked: told how long `put` waited for room."""
        self._blocked = blocked
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
            began = time.time()
            while len(self._items) >= self._depth and not self._closed:
                self._room.wait()
            if self._blocked is not None:
                self._blocked(time.time() - began)
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
            with waiting():
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
