"""The report looks right in a real browser on any screen."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.report.reading import written
from tests.jobs.report.runs import crowded, digits_leg

MEASURE = """() => {
const outcomes = {};
for (const frame of document.querySelectorAll("iframe")) {
  const page = frame.contentWindow, doc = page.document, found = [];
  if (doc.documentElement.scrollWidth > page.innerWidth) found.push("the page is wider than the screen");
  const charts = [...doc.querySelectorAll("svg[role=img]")].filter((svg) => svg.getClientRects().length);
  for (const chart of charts) {
    const texts = [...chart.querySelectorAll("text")].filter((text) => text.textContent.trim());
    const boxes = texts.map((text) => [text.textContent, text.getBoundingClientRect()]);
    const whole = chart.getBoundingClientRect();
    boxes.forEach(([name, box], i) => {
      const across = box.left >= 0 && box.right <= page.innerWidth;
      if (!across || box.top < whole.top - 2 || box.bottom > whole.bottom + 2)
        found.push(`${name} leaves its figure`);
      if (box.height < 10) found.push(`${name} is too small to read`);
      for (const [other, b] of boxes.slice(i + 1))
        if (box.left < b.right && b.left < box.right && box.top + 2 < b.bottom && b.top + 2 < box.bottom)
          found.push(`${name} and ${other} overlap`);
    });
  }
  const fetched = page.performance.getEntriesByType("resource").map((entry) => entry.name);
  outcomes[frame.title] = {charts: charts.length, found, fetched, title: doc.title};
}
return outcomes;
}"""


@pytest.mark.slow
def test_a_browser_shows_it_without_overlaps_or_requests_on_any_screen(
    tmp_path: Path, usual: Path, open_page: Callable[..., Any]
) -> None:
    frames = [
        f'<iframe title="{name}, {width} pixels" width="{width}" height="800" style="border:0" '
        f'srcdoc="{escape(html)}"></iframe>'
        for name, html in (
            ("usual", usual.read_text("utf-8")),
            ("crowded", written(tmp_path, crowded(), digits_leg())),
        )
        for width in (360, 500, 704, 705, 800, 1400)
    ]
    around = tmp_path / "around.html"
    around.write_text(f'<!doctype html><meta charset="utf-8">{"".join(frames)}', encoding="utf-8")
    outcomes = open_page(around, width=1500).evaluate(MEASURE)
    assert len(outcomes) == len(frames)
    for name, outcome in outcomes.items():
        assert outcome["title"] == "Decant: report of the demo", name
        assert outcome["charts"] == 4 + 12, name
        assert outcome["found"] == [], name
        assert outcome["fetched"] == [], name
