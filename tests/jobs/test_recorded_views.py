"""What is recorded of a view can be read by a person: in `decant inspect`, and on its page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jobs.inspection import describe_row
from jobs.viewer.data import Builder
from tests.pipeline.views.stores import labelled


def test_an_entry_is_shown_as_its_parameters(tmp_path: Path) -> None:
    _, store = labelled(tmp_path)
    commit = next(iter(store.commits()))
    rows = next(iter(store.read(commit)))
    row = rows.take(np.array([1]))
    shown = describe_row(commit, row, None, 1, 4)["inputs"]
    entry = json.loads(shown["ledger"])
    assert set(entry) <= {"crop", "flip", "ops", "mix"}
    assert len(entry["crop"]) == 4
    assert bytes.fromhex(shown["digest"]) == row.inputs["digest"][0].tobytes()
    assert f"ledger: {shown['ledger']}" in Builder(store.spec, None, 4, 4).row(commit, row)["inputs"]


def test_what_views_are_made_of_reads_as_in_a_job_file(tmp_path: Path, decant: Callable[..., Any]) -> None:
    _, store = labelled(tmp_path)
    shown = " ".join(decant(tmp_path, "inspect", store.url, "--rows", "0").stdout.split())
    assert "crop {kind: random, ratio: [0.75, 1.3333333333333333], scale: [0.08, 1.0]}" in shown
    assert "probability: 0.5" in shown
    assert "None" not in shown
    assert "'" not in shown
