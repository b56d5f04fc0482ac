"""A report as a parser and a person read it."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from jobs.demo.results import DigitsLeg, TextLeg
from jobs.report.page import write_report
from tests.jobs.report.runs import results


def written(folder: Path, text: TextLeg | None, digits: DigitsLeg | None) -> str:
    return write_report(results(text, digits), folder / "report.html").read_text("utf-8")


class Page(HTMLParser):
    """Checks nesting, and gathers what a browser would fetch and what a person would read."""

    void = frozenset(("meta", "link", "br", "img"))

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        assert self.open == [], "tags left open"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in self.void:
            self.open.append(tag)
        self._note(tag, attributes)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._note(tag, attributes)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    def _note(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.ids += [value or "" for name, value in attributes if name == "id"]
        self.links += [
            value or "" for name, value in attributes if name in ("src", "href", "xlink:href", "srcset")
        ]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).replace("\N{NO-BREAK SPACE}", " ").split())
