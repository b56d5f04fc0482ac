"""An audit draws, mixes and renders the views of images and audio again: as they are stored, or found."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.audit import audit
from tests.pipeline.views.stores import labelled


@pytest.mark.parametrize("kind", ["images", "audio"])
def test_an_honest_store_passes(tmp_path: Path, kind: str) -> None:
    job, _ = labelled(tmp_path, "omit", "parquet", kind)
    found = audit(job, rows=30)
    assert not found.findings
    assert found.checked["inputs"] >= 30


def test_a_job_that_draws_otherwise_is_found(tmp_path: Path) -> None:
    job, _ = labelled(tmp_path)
    other = job.model_copy(update={"views": job.views.model_copy(update={"seed": 1})})
    found = audit(other, rows=30)
    assert {finding.check for finding in found.findings} >= {"spec", "inputs"}
