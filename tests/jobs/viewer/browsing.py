"""Where things are on a store's page, and how to wait for them: a row is drawn when it comes near."""

from __future__ import annotations

import time
from typing import Any

ON_SCREEN = """[...document.querySelectorAll('article')].filter((one) => {
    const box = one.getBoundingClientRect();
    return box.top < innerHeight && box.bottom > 0;
})"""


def until(page: Any, holds: str) -> None:
    """Waits for an expression; the page's own policy lets no other tool of the browser do that."""
    deadline = time.monotonic() + 60
    while not page.evaluate(holds):
        if time.monotonic() > deadline:
            raise AssertionError(f"it never came: {holds}")
        page.wait_for_timeout(20)


def drawn_row(page: Any, row: int) -> Any:
    """A row's article, scrolled to and drawn."""
    article = page.locator("article").nth(row)
    article.scroll_into_view_if_needed()
    article.locator(".key").wait_for()
    return article


def token(page: Any, row: int, at: int) -> Any:
    return page.locator("article").nth(row).locator(f".t:nth-child({at + 1})")


def point_at(page: Any, row: int, at: int) -> Any:
    """Moves the mouse to a token. The tip, once it is about that token."""
    token(page, row, at).hover()
    page.locator("article").nth(row).locator(f".t.about:nth-child({at + 1})").wait_for()
    return page.locator("#tip")


def drawn_table(table: Any) -> list[list[str]]:
    """The texts of a distribution's cells."""
    return [row.locator("th, td").all_inner_texts() for row in table.locator("tr").all()]
