"""The report is one file that needs nothing else, tells the truth about its results, and looks right."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from jobs.demo.results import (
    Bytes,
    CommittedUnit,
    CurvePoint,
    DemoResults,
    DigitSample,
    DigitsLeg,
    DigitsRow,
    Kill,
    Labelling,
    Machine,
    StoreResult,
    StudentRun,
    TeacherResult,
    TextLeg,
)
from jobs.report.page import write_report

RANDOM = random.Random(0)


def timeline(kill: float = 41.3) -> list[CommittedUnit]:
    """Two replicas with two units each in flight; one is killed, and another takes its place 11 s later."""
    units = []
    for first in ("0", "1"):
        for start in (0.0, 2.4):
            now, replica = start, first
            while now < 92:
                end = now + RANDOM.uniform(4.2, 6.5)
                if replica == "1" and now < kill < end:
                    now, replica = kill + 11 + start, "2"
                    continue
                units.append((now, end, replica))
                now = end
    ordered = sorted(units, key=lambda unit: unit[1])
    return [
        CommittedUnit(
            unit=f"{number:032x}",
            replica=replica,
            started=started,
            finished=finished,
            records=RANDOM.randint(30, 60),
            targets=RANDOM.randint(70_000, 90_000),
            shard_bytes=1_400_000,
        )
        for number, (started, finished, replica) in enumerate(ordered)
    ]


def curve(final: float, seed: int) -> list[CurvePoint]:
    shaken = random.Random(seed)
    return [
        CurvePoint(step=step, val_nll=final + 3.2 * math.exp(-step / 90) + shaken.gauss(0, 0.004))
        for step in range(25, 601, 25)
    ]


def store(**changed: object) -> StoreResult:
    histogram = [int(400_000 * math.exp(-((i * 0.25) ** 1.1))) for i in range(40)]
    values: dict[str, object] = {
        "url": "/home/ada/demo-output/text/store",
        "codec": {"kind": "threshold", "threshold": 0.02},
        "vocabulary": 4096,
        "units": 61,
        "records": 2381,
        "rows": 19_112,
        "targets": 4_870_211,
        "bytes": 95_100_000,
        "shard_bytes": 93_800_000,
        "bytes_per_target": Bytes(
            shards=19.26,
            store=19.53,
            dense_float32=16_384,
            dense_float16=8192,
            topk={16: 68, 64: 260, 256: 1028},
        ),
        "entries_per_target": 7.43,
        "captured_mass": 0.8312,
        "entropy_mean": 1.62,
        "entropy_histogram": histogram,
        "verified_shards": 61,
        "problems": 0,
    }
    return StoreResult.model_validate({**values, **changed})


def text_leg(**changed: object) -> TextLeg:
    units = timeline()
    values: dict[str, object] = {
        "settings": {"corpus_bytes": 24_000_000, "vocabulary": 4096, "learning_rate": 0.003, "steps": 600},
        "corpus_files": 2394,
        "corpus_bytes": 24_113_201,
        "teacher": TeacherResult(
            parameters=3_211_264, train_tokens=9_830_400, train_seconds=71.2, reused=False, val_nll=2.107
        ),
        "labelling": Labelling(
            seconds=units[-1].finished,
            units=units,
            kill=Kill(at=41.3, replica="1", committed=28, recovered=57.2),
            records_planned=2394,
            records_labelled=2381,
            records_quarantined=13,
            records_lost=0,
            records_doubled=0,
        ),
        "store": store(),
        "student_parameters": 811_264,
        "students": [
            StudentRun(name=name, seed=seed, curve=curve(final, seed), seconds=18.3)
            for seed in range(3)
            for name, final in (("tokens", 2.71), ("store", 2.58))
        ],
        "seconds": 251.7,
    }
    return TextLeg.model_validate({**values, **changed})


def digits_leg() -> DigitsLeg:
    def row(kind: str, name: str, teaches: str, labels: int, errors: list[int]) -> DigitsRow:
        return DigitsRow.model_validate(
            {
                "kind": kind,
                "name": name,
                "teaches": teaches,
                "labels": labels,
                "parameters": 156_600 if kind == "teacher" else 36_458,
                "examples": 30_000,
                "test_errors": [error / 540 for error in errors],
            }
        )

    def sample(index: int) -> DigitSample:
        ring = [[abs(math.hypot(x - 3.5, (y - 3.5) * 0.8) - 2.2) < 0.8 for x in range(8)] for y in range(8)]
        rest = 0.4 * (index >= 6)
        return DigitSample(
            pixels=[255 * ink for line in ring for ink in line],
            probabilities=[1 - rest, 0, 0, rest, *[0] * 6],
        )

    return DigitsLeg(
        settings={"members": "cnn, cnn, cnn, mlp", "temperature": 4.0},
        store=store(
            codec={"kind": "dense", "dtype": "float16"},
            vocabulary=10,
            records=30_000,
            targets=30_000,
            shard_bytes=2_400_000,
            bytes_per_target=Bytes(shards=80, store=80.5, dense_float32=40, dense_float16=20, topk={}),
            entries_per_target=None,
            captured_mass=None,
        ),
        labelling_seconds=2.7,
        test_examples=540,
        table=[
            row("teacher", "mean of 4 networks", "all 1,257 labels", 1257, [6]),
            row("member", "each of them alone", "all 1,257 labels", 1257, [8, 10, 7, 10]),
            row("few", "cross-entropy", "38 labels (3 %)", 38, [120, 149, 96]),
            row("few", "cross-entropy, jittered", "38 labels (3 %)", 38, [93, 86, 84]),
            row("store", "L2 on logits", "the store", 0, [8, 8, 8]),
            row("store", "tempered KL, T = 4", "the store", 0, [7, 6, 8]),
            row("all", "cross-entropy, jittered", "all 1,257 labels", 1257, [6, 7, 8]),
        ],
        samples=[sample(i) for i in range(12)],
        seconds=29.3,
    )


def results(text: TextLeg | None, digits: DigitsLeg | None) -> DemoResults:
    return DemoResults(
        version="0.1.0",
        finished_at="2026-11-23T22:41:07+00:00",
        machine=Machine(cpus=2, python="3.11.9", torch="2.13.0", ray="2.60.0", platform="Linux x86_64"),
        seconds=312.4,
        text=text,
        digits=digits,
    )


def written(folder: Path, text: TextLeg | None, digits: DigitsLeg | None) -> str:
    return write_report(results(text, digits), folder / "report.html").read_text("utf-8")


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of both legs, alone in its folder."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    return write_report(results(text_leg(), digits_leg()), path)


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


def test_one_file_that_asks_for_nothing_from_elsewhere(usual: Path) -> None:
    html = usual.read_text("utf-8")
    page = Page(html)
    assert not re.search(r"https?:|//\w", html)
    assert page.links, "no link was found to be judged"
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert not re.search(r"url\((?!#)|@import", html)
    assert not page.tags & {"script", "iframe", "object", "embed", "base", "form"}
    assert "default-src 'none'" in html
    assert len(html.encode()) < 300_000
    assert [path.name for path in usual.parent.iterdir()] == ["report.html"]


def test_ids_of_the_figures_are_unique_and_all_references_resolve(usual: Path) -> None:
    html = usual.read_text("utf-8")
    page = Page(html)
    assert len(page.ids) == len(set(page.ids))
    references = {link[1:] for link in page.links if link.startswith("#")} | set(
        re.findall(r"url\(#(.*?)\)", html)
    )
    assert references
    assert references <= set(page.ids)


def test_every_colour_of_a_figure_follows_light_and_dark(usual: Path) -> None:
    html = usual.read_text("utf-8")
    figures = "".join(re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL))
    assert re.findall(r"#[0-9a-f]{6}\b", figures) == []
    used = set(re.findall(r"var\(--(\w+)\)", figures))
    assert used >= {"ink", "muted", "rule", "store", "tokens", "teacher", "kill"}
    assert used <= set(re.findall(r"--(\w+):", html))


def test_the_figures_of_the_run_are_on_the_page(usual: Path) -> None:
    text = Page(usual.read_text("utf-8")).text
    for words in (
        "19.3 bytes per token",
        "8,192, 425 times as much",
        "0 lost, 0 doubled",
        "2,394 records planned = 2,381 labelled + 13 in quarantine",
        "61 shards read again, checksums and contents: 0 problems",
        "28 units had been committed by then",
        "first unit 15.9 s after the kill",
        "ended lower in 3 of 3 seeds",
        "22.5 ± 4.9",
        "1.3 ± 0.2",
        "threshold 0.02, as stored",
        "kill -9 replica 1",
    ):
        assert words in text


def test_a_student_that_the_store_did_not_help_is_reported_as_such(tmp_path: Path) -> None:
    runs = [
        StudentRun(name=name, seed=seed, curve=curve(final, seed), seconds=1)
        for seed in range(3)
        for name, final in (("tokens", 2.5), ("store", 2.6))
    ]
    text = Page(written(tmp_path, text_leg(students=runs), None)).text
    assert "nats per token higher" in text
    assert "ended lower in 0 of 3 seeds" in text
    assert "distance to the teacher" not in text


def test_a_loss_and_a_broken_shard_are_marked(tmp_path: Path) -> None:
    lossy = text_leg().labelling.model_copy(update={"records_lost": 3, "records_labelled": 2378})
    html = written(tmp_path, text_leg(labelling=lossy, store=store(problems=1)), None)
    assert html.count('<li class="bad">') == 3
    assert "3 lost, 0 doubled" in Page(html).text


def test_a_store_that_was_complete_already_has_neither_kill_nor_timeline(tmp_path: Path) -> None:
    done = text_leg().labelling.model_copy(update={"kill": None, "units": [], "seconds": 0.0})
    text = Page(written(tmp_path, text_leg(labelling=done), None)).text
    assert "complete from an earlier run" in text
    assert "seconds since labelling began" not in text


@pytest.mark.parametrize("legs", [(True, False), (False, True), (False, False)])
def test_a_leg_that_was_left_out_leaves_no_trace(tmp_path: Path, legs: tuple[bool, bool]) -> None:
    has_text, has_digits = legs
    text = Page(
        written(tmp_path, text_leg() if has_text else None, digits_leg() if has_digits else None)
    ).text
    assert ("What a token costs" in text) == has_text
    assert ("shallow net" in text) == has_digits


def test_names_from_the_run_cannot_become_markup(tmp_path: Path) -> None:
    evil = '<script>alert(1)</script>&"'
    html = written(tmp_path, text_leg(store=store(url=evil), settings={evil: evil}), None)
    assert "<script" not in html
    assert evil in Page(html).text


def test_writing_again_replaces_the_file_and_gives_the_same_bytes(tmp_path: Path) -> None:
    leg, digits = text_leg(), digits_leg()
    assert written(tmp_path, leg, digits) == written(tmp_path, leg, digits)


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


def crowded() -> TextLeg:
    """Lines that end beside each other, a kill at the end, many replicas, long names and large numbers."""
    units = [
        unit.model_copy(update={"replica": str(100 + number % 9), "targets": unit.targets * 900})
        for number, unit in enumerate(timeline())
    ]
    last = max(unit.finished for unit in units)
    labelling = text_leg().labelling.model_copy(
        update={"units": units, "kill": Kill(at=last - 1, replica="108", committed=60, recovered=None)}
    )
    runs = [
        StudentRun(name=name, seed=seed, curve=curve(final, seed), seconds=1)
        for seed in range(3)
        for name, final in (("tokens", 2.114), ("store", 2.112))
    ]
    return text_leg(labelling=labelling, students=runs, store=store(entropy_histogram=[9, *[0] * 38, 9]))


@pytest.mark.xdist_group("browser")
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
