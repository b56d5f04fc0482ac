"""What cannot be packed is said. That packed rows are the rows, `test_mixing` holds beside mixtures."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.targets.errors import ConfigError
from student.data import TargetReader
from student.packing import pack


def test_rows_without_tokens_are_not_packed(image_store: Any) -> None:
    (batch,) = TargetReader(image_store([4]), batch_rows=4, split="all").epoch(0)
    with pytest.raises(ConfigError, match="only rows of tokens are packed, and the store has image, label"):
        pack(batch, 8)
