"""Stores in the world of Lightning: runs that are resumed at the exact row. Knows no model and no loss.

    reader = TargetReader(url, batch_rows=64)
    trainer = Trainer(max_steps=1000, callbacks=[ReaderState(reader)])
    trainer.fit(module, DataLoader(reader, batch_size=None))

What the module's steps get are batches of the reader.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pipeline.targets.errors import ConfigError
from student.stream import Stream

try:
    from lightning.pytorch import Callback
except ImportError as error:
    raise ConfigError('student.lightning needs that library: pip install "decant-kd[lightning]"') from error


class ReaderState(Callback):  # type: ignore[misc]
    """Keeps in the Trainer's checkpoints where its reader stands, and has it go on there.

    That is behind the batches that were trained on, whatever the Trainer (always a batch) and a DataLoader's
    workers have read ahead; a Lightning epoch that ends hands what was read ahead back to the next one.
    stream: the dataset of the Trainer's DataLoader. Loading raises ConfigError as its `load_state_dict`.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._start: Mapping[str, Any] = stream.state_dict()
        self._batches = 0

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Counts from where the stream stands: a checkpoint, if there is one, is loaded by now."""
        self._start, self._batches = self._stream.state_dict(), 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Raises ConfigError where workers would outlive an epoch, and what they have read ahead be lost."""
        persistent = getattr(trainer.train_dataloader, "persistent_workers", False)
        if persistent and trainer.num_training_batches < math.inf:
            raise ConfigError(
                "persistent_workers must be off where an epoch has an end (limit_train_batches): what they "
                "have read ahead would never be trained on"
            )

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Before any callback that saves."""
        self._batches += 1

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Loaders are iterated anew."""
        self._stream.load_state_dict(self.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """The stream's state behind what was trained on."""
        return self._stream.advanced(self._start, self._batches)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Has the stream go on there."""
        self._stream.load_state_dict(state_dict)
