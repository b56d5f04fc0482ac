"""Which device a process computes on."""

from __future__ import annotations

import pytest
import torch

from student.distributed import joined


def test_an_accelerator_without_float64_is_not_taken_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums over targets are float64; as on Apple's, which are not at hand here."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("mps"))
    with joined("auto") as world:
        assert world.device == torch.device("cpu")
        assert (world.rank, world.size) == (0, 1)
