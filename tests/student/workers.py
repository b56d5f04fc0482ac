"""A stateful loader's workers, by turns in this process: a copy of the stream and a state for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from student import stream
from student.stream import Stream


class Worker:
    def __init__(self, number: int, workers: int) -> None:
        self.id, self.num_workers = number, workers


def in_turns(make: Callable[[], Stream], workers: int, batches: Sequence[int]) -> list[str]:
    """Keys of so many batches, interrupted and resumed after each number of them."""
    states: list[Any] = [None] * workers
    seen: list[str] = []
    turn = 0
    with pytest.MonkeyPatch.context() as patch:

        def be(number: int) -> None:
            patch.setattr(stream, "get_worker_info", lambda: Worker(number, workers))

        for count in batches:
            copies = [make() for _ in range(workers)]
            streams: list[Any] = []
            for number, copy in enumerate(copies):
                be(number)
                if states[number] is not None:
                    copy.load_state_dict(states[number])
                streams.append(iter(copy))
                states[number] = copy.state_dict()  # of one that is interrupted before its first batch
            for _ in range(count):
                be(turn)
                seen += next(streams[turn]).keys
                states[turn] = copies[turn].state_dict()
                turn = (turn + 1) % workers
            for each in streams:
                each.close()
    return seen
