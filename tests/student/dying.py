"""A student whose process dies."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch


class Dying(torch.nn.Embedding):
    """A bigram model. The first process that calls it so often, of all that share `mark`, is killed."""

    def __init__(self, classes: int, calls: int, mark: str) -> None:
        super().__init__(classes, classes)
        self.left, self.mark = calls, Path(mark)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [B, L, V]."""
        self.left -= 1
        if not self.left:
            try:
                self.mark.touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(tokens)
