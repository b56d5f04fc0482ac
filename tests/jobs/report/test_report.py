"""The report is one file that needs nothing else and tells the truth about its results."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from jobs.demo.results import StudentRun
from tests.jobs.report.reading import Page, written
from tests.jobs.report.runs import curve, digits_leg, store, text_leg


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
