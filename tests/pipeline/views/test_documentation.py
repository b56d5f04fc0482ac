"""docs/views.md is true: its settings load, and its tables have every operation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

from pipeline.targets.replay.pixels import OPERATIONS
from pipeline.views import AnyViews

TEXT = (Path(__file__).parents[3] / "docs" / "views.md").read_text()

BLOCKS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block["views"]["kind"])
def test_settings_are_understood(block: dict[str, Any]) -> None:
    views: Any = TypeAdapter(AnyViews).validate_python(block["views"])
    assert views.kind == block["views"]["kind"]


def test_every_operation_has_its_argument_in_the_table() -> None:
    table = TEXT[TEXT.index("| operation | argument |") : TEXT.index("A recording's entry")]
    assert set(re.findall(r"`(\w+)`", table)) == set(OPERATIONS)
