"""Texts that would do harm as markup stay text, in the file and in a browser."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.viewer.page import write_page
from pipeline.targets import Quarantined
from tests.jobs.viewer.browsing import drawn_row, point_at
from tests.jobs.viewer.stores import HOSTILE, text_store


def test_the_data_of_hostile_texts_is_json_without_markup(tmp_path: Path, tokenizer: Any) -> None:
    keys = [(text, text) for text in HOSTILE]
    store = text_store(tmp_path / "store", tokenizer, keys)
    write_page(store, tmp_path / "page.html", tokenizer=tokenizer)
    html = (tmp_path / "page.html").read_text("utf-8")
    data = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, flags=re.DOTALL)
    assert len(data) == 1
    assert "<" not in data[0]
    assert data[0].isascii()
    assert [(row["key"], row["text"]) for row in json.loads(data[0])["rows"]] == keys


def test_hostile_texts_stay_text_wherever_they_stand(
    tmp_path: Path, tokenizer: Any, open_page: Callable[..., Any]
) -> None:
    lost = [
        *(Quarantined(text, n, None, text, text) for n, text in enumerate(HOSTILE, len(HOSTILE))),
        Quarantined("half a pair \ud800", 99, 0, "odd", "\udfff"),
    ]
    store = text_store(
        tmp_path / "store",
        tokenizer,
        [(text, text) for text in HOSTILE],
        teacher={"labels": HOSTILE[:2], "note": "".join(HOSTILE)},
        quarantined=lost,
    )
    write_page(store, tmp_path / "page.html", tokenizer=tokenizer)
    page = open_page(tmp_path / "page.html")
    assert page.locator("article").count() == len(HOSTILE)
    for row, text in enumerate(HOSTILE[:5]):
        article = drawn_row(page, row)
        assert article.locator(".key").inner_text() == text
        assert "".join(article.locator(".t:not(.part)").all_text_contents()) == text
        assert point_at(page, row, 1).is_visible()
        words = article.locator(".classes .word").all_inner_texts()
        assert sorted(words) == sorted(HOSTILE[:2])
        assert page.locator("#quarantine tbody tr").nth(row).locator("bdi").all_inner_texts() == [text] * 2
    assert "\\u202e" in drawn_row(page, 5).locator(".key").inner_text()
    for text in HOSTILE[2:5]:
        page.locator("#search").fill(text)
        assert page.locator("#count").inner_text() == f"1 of {len(HOSTILE)} rows"
    assert page.evaluate("window.hacked") is None
    assert page.locator("script").count() == 2
    assert page.locator("img, iframe, svg:not(.histogram svg)").count() == 0
