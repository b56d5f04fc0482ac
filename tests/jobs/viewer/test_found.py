"""In a real browser one finds one's way: by keyboard, by search, among many rows, on any screen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.viewer.page import write_page
from pipeline.targets import Store
from tests.jobs.viewer.browsing import ON_SCREEN, drawn_row, token, until
from tests.jobs.viewer.stores import text_store


def test_the_keyboard_walks_over_the_tokens(birds: tuple[Store, Path], open_page: Callable[..., Any]) -> None:
    page = open_page(birds[1])
    first, _ = drawn_row(page, 0), drawn_row(page, 1)
    page.locator("#search").focus()
    page.keyboard.press("Tab")
    where = "[document.activeElement.row, document.activeElement.at]"
    assert page.evaluate(where) == [0, 0]
    assert page.locator("#tip").is_visible()
    assert page.evaluate("document.activeElement.getAttribute('aria-describedby')") == "tip"
    last = first.locator(".t").count() - 1
    for key, expected in (
        ("ArrowRight", [0, 1]),
        ("ArrowLeft", [0, 0]),
        ("ArrowDown", [1, 0]),
        ("ArrowUp", [0, 0]),
        ("End", None),
        ("Home", [0, 0]),
    ):
        page.keyboard.press(key)
        if expected is None:
            assert page.evaluate("document.activeElement.at") == last
        else:
            assert page.evaluate(where) == expected
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()
    page.keyboard.press("Tab")
    assert page.evaluate(where) == [1, 0]  # one stop a row


def test_the_search_finds_text_and_keys_and_counts_them(
    birds: tuple[Store, Path], open_page: Callable[..., Any]
) -> None:
    page = open_page(birds[1])
    for wanted, found in (
        ("GRASS", ["geese.txt"]),
        ("swans.TXT", ["swans.txt"]),
        ("the", ["ducks.txt", "geese.txt", "swans.txt"]),
        ("(for", ["ducks.txt"]),
        ("größer, 🦢", ["swans.txt"]),
        (".*", []),
        ("\\", []),
        ("", ["ducks.txt", "geese.txt", "swans.txt"]),
    ):
        page.locator("#search").fill(wanted)
        until(
            page,
            "[...document.querySelectorAll('article:not([hidden])')].every((one) => one.children.length)",
        )
        assert page.locator("article:visible .key").all_inner_texts() == found
        assert page.locator("#count").inner_text() == (f"{len(found)} of 3 rows" if wanted else "3 rows")
    page.locator("#search").fill("grass")
    hits = page.locator("article:visible .t.hit").all_inner_texts()
    assert "".join(hits).replace(" ", "") == "grassgrass"
    page.locator("#search").fill("")
    assert page.locator(".hit").count() == 0


@pytest.mark.slow
def test_a_thousand_rows_are_drawn_only_where_one_looks(
    tmp_path: Path, tokenizer: Any, open_page: Callable[..., Any]
) -> None:
    texts = [
        (f"file{n // 10}.txt", f"row {n:04d}: the duck dives for weeds, again and again.")
        for n in range(1000)
    ]
    store = text_store(tmp_path / "store", tokenizer, texts)
    write_page(store, tmp_path / "page.html", tokenizer=tokenizer, rows=1000)
    page = open_page(tmp_path / "page.html")
    per_row = len(tokenizer.encode(texts[0][1]).ids) + 3
    most = 60  # rows of this kind on three screens, generously

    def drawn() -> list[int]:
        assert page.locator(".t").count() <= most * per_row
        return page.evaluate("[...document.querySelectorAll('article.filled')].map((one) => one.row)")

    assert page.locator("#count").inner_text() == "1,000 rows"
    page.evaluate("document.getElementById('rows').scrollIntoView()")
    until(page, "document.querySelectorAll('article.filled').length > 3")
    assert drawn()[0] == 0
    assert len(drawn()) <= most
    height = page.evaluate("document.documentElement.scrollHeight")
    for part in (0.25, 0.5, 0.75, 1):
        page.evaluate(f"scrollTo(0, {part} * document.documentElement.scrollHeight)")
        until(page, f"{ON_SCREEN}.length && {ON_SCREEN}.every((one) => one.classList.contains('filled'))")
        rows = drawn()
        assert 3 < len(rows) <= most
        assert abs(rows[len(rows) // 2] - part * 1000) < 100
    until(page, "document.querySelector('article:last-child').matches('.filled')")
    assert drawn()[-1] == 999
    # The scroll bar told the truth, within a row's guessed height.
    assert page.evaluate("document.documentElement.scrollHeight") == pytest.approx(height, rel=0.3)

    page.locator("#search").fill("row 0777")
    assert page.locator("#count").inner_text() == "1 of 1,000 rows"
    assert page.locator("article:visible").count() == 1
    until(page, "document.querySelectorAll('article.filled').length === 1")
    assert page.locator("article:visible .t").first.is_visible()
    page.locator("#search").fill("file7")
    assert page.locator("#count").inner_text() == "110 of 1,000 rows"
    until(page, "document.querySelectorAll('article.filled').length > 3")
    assert all(row // 100 == 7 or row // 10 == 7 for row in drawn())
    page.locator("#search").fill("nothing has this")
    assert page.locator("#count").inner_text() == "0 of 1,000 rows"
    until(page, "document.querySelectorAll('article.filled').length === 0")


@pytest.mark.slow
def test_it_fits_every_screen(birds: tuple[Store, Path], open_page: Callable[..., Any]) -> None:
    page = open_page(birds[1])
    for width in (360, 500, 800, 1400):
        page.set_viewport_size({"width": width, "height": 700})
        page.reload()
        page.evaluate("document.getElementById('rows').scrollIntoView()")
        token(page, 1, 4).click()
        box = page.locator("#tip").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert box["y"] + box["height"] <= 701
        chosen = token(page, 1, 4).bounding_box()
        assert box["y"] >= chosen["y"] + chosen["height"] or box["y"] + box["height"] <= chosen["y"]
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_it_follows_the_colour_scheme(birds: tuple[Store, Path], open_page: Callable[..., Any]) -> None:
    page = open_page(birds[1])
    seen = set()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        seen.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(seen) == 2
