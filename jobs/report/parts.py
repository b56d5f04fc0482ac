"""The pieces that the page is put together of, as HTML. Knows no results.

Arguments called `html` are HTML already; every other text is escaped here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple


def plain(text: str) -> str:
    """Text as HTML; a number and its unit stay on one line."""
    return re.sub(r"(\d) (?=(?:[kMGT]?B|M|s|min|h|nats|bytes)\b|%)", "\\1\N{NO-BREAK SPACE}", escape(text))


class Column(NamedTuple):
    """title: of a table's column; number: set flush right; optional: left out on a narrow screen."""

    title: str
    number: bool = False
    optional: bool = False
    kind: str = ""

    @property
    def attributes(self) -> str:
        """The class attribute of its cells."""
        flags = (("n", self.number), ("optional", self.optional), (self.kind, bool(self.kind)))
        names = [name for name, given in flags if given]
        return f' class="{" ".join(names)}"' if names else ""


class Group(NamedTuple):
    """A row that names those that follow."""

    title: str


Row = Sequence[str] | Group
"""The HTML of every cell, or the name of a group."""


def table(columns: Sequence[Column], rows: Sequence[Row], caption: str) -> str:
    """The first cell of a row is its heading."""
    head = "".join(f'<th scope="col"{column.attributes}>{escape(column.title)}</th>' for column in columns)
    body = "".join(_row(columns, row) for row in rows)
    return (
        f'<div class="scroll"><table><caption>{plain(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _row(columns: Sequence[Column], row: Row) -> str:
    if isinstance(row, Group):
        span = f'colspan="{len(columns)}"'
        return f'<tr class="group"><th scope="colgroup" {span}>{escape(row.title)}</th></tr>'
    first, *others = zip(columns, row, strict=True)
    cells = "".join(f"<td{column.attributes}>{html}</td>" for column, html in others)
    return f'<tr><th scope="row"{first[0].attributes}>{first[1]}</th>{cells}</tr>'


def bar(share: float, kind: str) -> str:
    """A level bar of that share of the cell's width."""
    return f'<i class="{kind}" style="width:{100 * share:.1f}%"></i>'


def card(figure: str, unit: str, meaning: str) -> str:
    """A headline figure."""
    large = f"<b>{escape(figure)} <small>{escape(unit)}</small></b>"
    return f'<div class="card">{large}<span>{plain(meaning)}</span></div>'


def cards(html: Sequence[str]) -> str:
    """Headline figures side by side."""
    return f'<div class="cards">{"".join(html)}</div>'


def figure(html: str) -> str:
    """A drawing."""
    return f"<figure>{html}</figure>"


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f'<p class="{kind}">{plain(text)}</p>' if kind else f"<p>{plain(text)}</p>"


def checks(outcomes: Sequence[tuple[bool, str]]) -> str:
    """A list of what was checked, each with its outcome."""
    items = "".join(
        f"<li>{escape(text)}</li>" if good else f'<li class="bad">{plain(text)}</li>'
        for good, text in outcomes
    )
    return f'<ul class="checks">{items}</ul>'


def definitions(title: str, values: Mapping[str, object]) -> str:
    """Names and values, folded away."""
    items = "".join(
        f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(_plain(value))}</dd>"
        for name, value in values.items()
    )
    return f"<details><summary>{escape(title)}</summary><dl>{items}</dl></details>"


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and abs(value) >= 10_000:
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "none" if value is None else str(value)
