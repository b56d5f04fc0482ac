"""Several stores as one stream of batches, each as often as its weight says.

Knows readers and shares, nothing of rows. Stores may differ in all they hold: a batch is of one store.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.targets.errors import ConfigError
from student.batch import Batch
from student.data import TargetReader
from student.stream import Stream, in_worker

STATE_VERSION = 1

PATIENCE = 100
"""How many times as long as it should take a worker waits for its turn to make a reader's batch."""


class MixedReader(Stream):
    """Batches of several readers, endless.

    The next batch comes from the reader that is farthest behind its share of all batches, the first of
    several. So the mixture is a function of the weights alone, evenly spread: after n batches no reader is a
    whole batch ahead of its share. Each reader goes through its own epochs. In a DataLoader (see
    `student.stream`) a worker reads the stores that its own batches are of.

    weights: positive, of any sum. Raises ConfigError for impossible ones.
    """

    def __init__(self, readers: Sequence[TargetReader], weights: Sequence[float]) -> None:
        if not readers or len(readers) != len(weights):
            raise ConfigError(f"{len(weights)} weights are given for {len(readers)} readers: one for each")
        if not all(math.isfinite(weight) and weight > 0 for weight in weights):
            raise ConfigError(f"weights {list(weights)} must be positive numbers")
        self.readers = list(readers)
        self.shares = [weight / sum(weights) for weight in weights]
        self._taken = [0] * len(readers)

    def _turns(self, workers: int) -> Iterator[Batch]:
        streams: dict[int, Iterator[Batch]] = {}
        try:
            while True:
                chosen = next(schedule(self.shares, self._taken))
                batch = next(streams.get(chosen, iter(())), None)
                if batch is None:
                    wanted = self._wanted(chosen, workers, list(self._taken))
                    streams[chosen] = self.readers[chosen].picked(wanted)
                    batch = next(streams[chosen])
                self.skip(workers)
                yield batch
        finally:
            for stream in streams.values():
                stream.close()  # type: ignore[attr-defined]

    def _wanted(self, reader: int, workers: int, taken: list[int]) -> Iterator[bool]:
        """Which of a reader's next batches are a worker's, the mixture's next one being its own.

        Weights that are almost a ratio of small numbers give a reader's batches to the same workers for as
        long as that holds. It ends where they are others' from then on, or reading ahead would never end.
        """
        last, most = 0, PATIENCE * workers / self.shares[reader]
        for number, chosen in enumerate(schedule(self.shares, taken)):
            if number - last > most:
                return
            if chosen == reader:
                ours = number % workers == 0
                last = number if ours else last
                yield ours

    def skip(self, batches: int) -> None:
        """Moves the state on past so many batches, which are not read."""
        counts = Counter(itertools.islice(schedule(self.shares, self._taken), batches))
        for chosen, count in counts.items():
            self._taken[chosen] += count
            self.readers[chosen].skip(count)

    def advanced(self, state: Mapping[str, Any], batches: int) -> dict[str, Any]:
        """The state that comes so many batches after another."""
        counts = Counter(itertools.islice(schedule(self.shares, state["taken"]), batches))
        readers = zip(self.readers, state["readers"], strict=True)
        return {
            **state,
            "taken": [taken + counts[number] for number, taken in enumerate(state["taken"])],
            "readers": [reader.advanced(each, counts[n]) for n, (reader, each) in enumerate(readers)],
        }

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch starts: small, JSON, and the same on every rank."""
        return {
            "version": STATE_VERSION,
            "shares": self.shares,
            "taken": list(self._taken),
            "readers": [reader.state_dict() for reader in self.readers],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on there. Raises ConfigError when the state is of another mixture, and as the readers do."""
        if state.get("version") != STATE_VERSION or state.get("shares") != self.shares:
            raise ConfigError(
                f"the interrupted run mixed by {state.get('shares')}, this one by {self.shares}: the batches "
                "would differ; start a new run"
            )
        taken, states = state.get("taken"), state.get("readers")
        if not isinstance(taken, list) or not isinstance(states, list):
            raise ConfigError("the mixture's state does not say how far its readers were")
        for reader, each in zip(self.readers, states, strict=True):
            reader.load_state_dict(each)
        self._taken = [int(count) for count in taken]
        self._own = in_worker()


def schedule(shares: Sequence[float], taken: Sequence[int]) -> Iterator[int]:
    """Of which reader the next batches are, endless. taken: how many batches each has given so far."""
    given = list(taken)
    for after in itertools.count(sum(given) + 1):
        behind = [share * after - count for share, count in zip(shares, given, strict=True)]
        chosen = behind.index(max(behind))
        given[chosen] += 1
        yield chosen
