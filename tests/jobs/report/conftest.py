"""The report of a usual run."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.report.page import write_report
from tests.jobs.report.runs import digits_leg, results, text_leg


@pytest.fixture(scope="session")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of both legs, alone in its folder."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    return write_report(results(text_leg(), digits_leg()), path)
