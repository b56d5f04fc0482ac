"""An endless stream of batches as PyTorch's loaders take it.

Knows states and workers, and not where the batches come from.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from student.batch import Batch


class Stream(IterableDataset[Batch], ABC):
    """Batches in an order of its own, without end; each one taken moves the state on.

    In a DataLoader (batch_size=None) worker w of W makes every W-th batch, and the batches come in the same
    order as without. A StatefulDataLoader keeps each worker's own state.
    """

    _own = False
    """Whether the state is that of a DataLoader's worker, from which it goes on with its own next batch."""

    def __iter__(self) -> Iterator[Batch]:
        """From where the state stands.

        Not a generator: what a loader keeps of a worker that has made no batch yet has to be where it will.
        """
        first, workers = _place()
        self.skip(0 if self._own else first)
        self._own = in_worker()
        return self._turns(workers)

    @abstractmethod
    def _turns(self, workers: int) -> Iterator[Batch]:
        """The next batch and every `workers`-th after it; each moves the state on to the next of these."""

    @abstractmethod
    def skip(self, batches: int) -> None:
        """Moves the state on past so many batches, which are not read."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Where the next batch starts: small, JSON, and the same on every rank."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on there. Raises ConfigError when the batches would be others than the state's."""

    @abstractmethod
    def advanced(self, state: Mapping[str, Any], batches: int) -> dict[str, Any]:
        """The state that comes so many batches after another.

        For whoever knows how many batches were learned, where loaders have read ahead or in other processes.
        """


def turns() -> Iterator[bool]:
    """Which of the batches that all workers of a DataLoader know are this one's; outside of one, all."""
    ours, workers = _place()
    return itertools.cycle([number == ours for number in range(workers)])


def in_worker() -> bool:
    """Whether this is a DataLoader's worker."""
    return get_worker_info() is not None


def _place() -> tuple[int, int]:
    """Which worker this is, of how many; outside of one, the first of one."""
    worker = get_worker_info()
    return (0, 1) if worker is None else (worker.id, worker.num_workers)
