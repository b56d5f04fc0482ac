"""The page of a store is one safe file."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.viewer.data import pieces
from jobs.viewer.page import write_page
from pipeline.targets import Head, Rows, Spec, Store
from pipeline.targets.codecs import Dense
from pipeline.targets.errors import CorruptShard
from tests.jobs.viewer.stores import make_store


def test_the_page_asks_for_nothing_and_runs_its_own_script_alone(birds: tuple[Store, Path]) -> None:
    html = birds[1].read_text("utf-8")
    assert re.findall(r'\b(?:src|href|srcset|action)="([^"]*)"', html) == ["data:,"]
    assert not re.search(r"https?:|url\(|@import|innerHTML|\bimport\b|fetch\(", html)
    script = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    assert len(script) == 1
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert f"default-src 'none'; script-src 'sha256-{digest}'" in html
    assert [path.name for path in sorted(birds[1].parent.iterdir())] == ["page.html", "store"]


def test_a_row_that_is_no_distribution_is_named(tmp_path: Path, tokenizer: Any) -> None:
    spec = Spec(
        inputs=(),
        heads=(Head("logits", 3, "single", Dense("float32")),),
        teacher={"kind": "fake", "fingerprint": "t"},
        views={"kind": "arrays", "fingerprint": "v"},
    )
    one = np.ones(1, dtype=np.int32)
    rows = Rows(
        spec=spec,
        keys=["bird#7"],
        row=np.zeros(1, dtype=np.int64),
        view=0 * one,
        views=one,
        targets=0 * one,
        inputs={},
        heads={"logits": {"logits": np.full((1, 3), np.nan, dtype="<f4")}},
    )
    store = make_store(tmp_path / "store", spec, rows)
    with pytest.raises(CorruptShard, match=r"head logits of bird#7, shard shards/.*: it has a probability"):
        write_page(store, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@settings(max_examples=50)
@given(st.text(max_size=40), st.integers(0, 20), st.integers(0, 20))
def test_the_pieces_of_tokens_join_to_their_text(tokenizer: Any, text: str, skip: int, drop: int) -> None:
    ids = tokenizer.encode(text).ids
    ids = ids[skip : len(ids) - drop]
    found = pieces(tokenizer, ids)
    assert len(found) == len(ids)
    assert "".join(found) == tokenizer.decode(ids, skip_special_tokens=False)


def test_inspect_writes_the_page_of_a_job(small_job: Any, decant: Callable[..., Any]) -> None:
    folder = small_job.folder
    assert decant(folder, "label", str(small_job.file)).exit_code == 0
    done = decant(folder, "inspect", str(small_job.file), "--html", "page.html")
    assert done.exit_code == 0
    assert done.stdout.startswith("page.html: ")
    data = json.loads(
        re.findall(r'id="data">(.*?)</script>', (folder / "page.html").read_text("utf-8"), re.DOTALL)[0]
    )
    assert data["rows"][0]["key"].endswith("ducks.txt")
    assert data["rows"][0]["text"].startswith("The duck swims on the pond")

    few = decant(folder, "inspect", "store", "--html", "page.html", "--rows", "2", "--positions", "5")
    assert "page.html: 2 rows" in few.stdout
    assert "To see text instead of ids: --tokenizer DIR" in few.stdout
    html = (folder / "page.html").read_text("utf-8")
    data = json.loads(re.findall(r'id="data">(.*?)</script>', html, re.DOTALL)[0])
    assert [len(row["text"].split()) for row in data["rows"]] == [5, 5]
    assert all(row["heads"][0]["targets"] == 5 for row in data["rows"])


@pytest.mark.parametrize("other", ["--json", "--quarantine"])
def test_a_page_and_another_form_at_once_are_refused(
    small_job: Any, decant: Callable[..., Any], other: str
) -> None:
    done = decant(small_job.folder, "inspect", str(small_job.file), "--html", "page.html", other)
    assert done.exit_code == 2
    assert f"--html and {other}" in done.stderr
