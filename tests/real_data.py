"""Public data sets that are not part of the repository: where they are, or why a test is skipped."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def real_data(name: str) -> Path:
    """A file or folder below DECANT_DATA, by default ../shared/data. Skips the test where it is absent."""
    folder = Path(os.environ.get("DECANT_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / name).exists():
        pytest.skip(f"there is no {name} in {folder}: set DECANT_DATA to where it is")
    return folder / name
