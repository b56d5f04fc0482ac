"""Several stores as one stream of batches, each as often as its weight says.

Knows readers and shares, nothing of rows. Stores may differ in all they hold: a batch is of one store.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from pipeline.targets.errors import ConfigError
from student.batch import Batch
from student.data import TargetReader

STATE_VERSION = 1


class MixedReader(IterableDataset[Batch]):
    """Batches of several readers, endless.

    The next batch comes from the reader that is farthest behind its share of all batches, the first of
    several. So the mixture is a function of the weights alone, evenly spread: after n batches no reader is a
    whole batch ahead of its share. Each reader goes through its own epochs.

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

    def __iter__(self) -> Iterator[Batch]:
        """From where the state stands; each batch taken moves the state on."""
        if get_worker_info() is not None:
            raise ConfigError("MixedReader reads in threads: use it in a DataLoader with num_workers=0")
        streams = [iter(reader) for reader in self.readers]
        try:
            while True:
                chosen = self._chosen()
                batch = next(streams[chosen])
                self._taken[chosen] += 1
                yield batch
        finally:
            for stream in streams:
                stream.close()  # type: ignore[attr-defined]

    def _chosen(self) -> int:
        """The reader of the next batch."""
        after = sum(self._taken) + 1
        behind = [share * after - taken for share, taken in zip(self.shares, self._taken, strict=True)]
        return behind.index(max(behind))

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
