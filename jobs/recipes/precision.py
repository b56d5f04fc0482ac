"""In which numbers nets compute where it is said to be free."""

from __future__ import annotations

from typing import Literal

Precision = Literal["float32", "bfloat16"]
"""Of products. bfloat16 is several times as fast on CPUs with AMX and on accelerators, slower elsewhere."""
