"""In a real browser the page shows what the store holds."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.viewer.page import write_page
from pipeline.targets import Head, Input, Rows, Spec, Store
from pipeline.targets.codecs import Codec, Dense, Threshold, TopK
from tests.jobs.viewer.browsing import drawn_row, drawn_table, point_at, token, until
from tests.jobs.viewer.stores import BIRDS, SIZE, decoded_row, make_store, text_store


def test_it_shows_progress_quarantine_and_every_token_in_its_place(
    birds: tuple[Store, Path], open_page: Callable[..., Any]
) -> None:
    page = open_page(birds[1])
    assert "1 of 4 units committed, 25\N{NO-BREAK SPACE}%" in page.locator("#progress").inner_text()
    assert page.locator(".histogram rect").count() == 4
    assert page.locator("#quarantine tbody tr").all_inner_texts() == [
        "undecodable\towls.txt\towls.txt is no UTF-8 text\t" + next(birds[0].commits()).unit[:12]
    ]
    assert page.locator("#count").inner_text() == "3 rows"
    for row, (key, text) in enumerate(BIRDS):
        article = drawn_row(page, row)
        assert article.locator(".key").inner_text() == key
        shown = "".join(article.locator(".t:not(.part)").all_text_contents())
        assert shown == text.replace("\n", "↵\n")
    assert "on average below the teacher's own" in page.locator("#legend").inner_text()


def test_a_token_is_the_more_coloured_the_less_the_teacher_knows_what_follows(
    birds: tuple[Store, Path], open_page: Callable[..., Any]
) -> None:
    page = open_page(birds[1])
    entropy = decoded_row(birds[0], 1, "logits").entropy()
    names = drawn_row(page, 1).locator(".t").evaluate_all("all => all.map((t) => t.className)")
    assert len(names) == len(entropy) + 1
    assert names[-1] == "t"  # nothing is known of what follows the last
    levels = np.array([int(re.fullmatch(r"t(?: part)? e(\d)", name)[1]) for name in names[:-1]])
    order = np.argsort(entropy, kind="stable")
    assert (np.diff(levels[order]) >= 0).all()
    assert len(set(levels)) > 3
    colours = page.evaluate(
        "[0, 4, 8].map((e) => getComputedStyle(document.querySelector(`.swatches .e${e}`)).backgroundColor)"
    )
    assert len(set(colours)) == 3


@pytest.mark.parametrize("codec", [Threshold(threshold=0.05), TopK(k=20), Dense("float32")])
def test_hovering_shows_the_stored_distribution_and_what_really_came(
    tmp_path: Path, tokenizer: Any, open_page: Callable[..., Any], codec: Codec
) -> None:
    store = text_store(tmp_path / "store", tokenizer, BIRDS, codec)
    write_page(store, tmp_path / "page.html", tokenizer=tokenizer, entries=8)
    page = open_page(tmp_path / "page.html")
    found, ids = decoded_row(store, 0, "logits"), tokenizer.encode(BIRDS[0][1]).ids
    assert page.locator("#tip").is_hidden()
    marks = set()
    for at in (0, 3, 9):
        tip = point_at(page, 0, at)
        assert tip.is_visible()
        bounds = slice(found.offsets[at], found.offsets[at + 1])
        p, named, is_head = found.probabilities[bounds], found.ids[bounds], found.is_head[bounds]
        lines = drawn_table(tip.locator("table"))
        entries = [line for line in lines if line[-1] in ("head", "tail")]
        assert len(entries) == min(8, len(p))
        shown = [float(line[2]) for line in entries]
        np.testing.assert_allclose(shown, np.sort(p)[::-1][:8], atol=1e-3)
        for _, number, probability, _, mark in entries:
            where = int(np.flatnonzero(named == int(number))[0])
            assert float(probability) == pytest.approx(p[where], abs=1e-3)
            assert mark == ("head" if is_head[where] else "tail")
            marks.add(mark)
        (came,) = tip.locator("tr.came").all()
        cells = came.locator("th, td").all_inner_texts()
        assert int(cells[1]) == ids[at + 1]
        truth = found.probability(np.full(len(found), ids[at + 1]))[at]
        if cells[4] == "not kept":
            assert (cells[2], truth) == ("–", 0)
        else:
            assert float(cells[2]) == pytest.approx(truth, abs=1e-3)
        bars = tip.locator("td.bar i").evaluate_all("all => all.map((bar) => bar.style.width)")
        assert float(bars[0].rstrip("%")) == pytest.approx(100 * p.max(), rel=0.01)
        assert "came" in (token(page, 0, at + 1).get_attribute("class") or "").split()
        assert f"entropy {found.entropy()[at]:.2f} nats" in tip.inner_text()
    assert marks == ({"head", "tail"} if isinstance(codec, Threshold) else {"head"})
    page.locator("h1").hover()
    page.locator("#tip").wait_for(state="hidden")


def test_of_several_teachers_of_the_next_token_one_is_chosen(
    tmp_path: Path, tokenizer: Any, open_page: Callable[..., Any]
) -> None:
    small = Head("small", SIZE, "next_token", TopK(k=4))
    store = text_store(tmp_path / "store", tokenizer, [*BIRDS, ("one token", "a")], others=(small,))
    write_page(store, tmp_path / "page.html", tokenizer=tokenizer)
    page = open_page(tmp_path / "page.html")
    page.evaluate("document.getElementById('rows').scrollIntoView()")
    assert page.locator("#head option").all_inner_texts() == ["logits", "small"]
    for head in ("small", "logits"):
        page.locator("#head").select_option(label=head)
        first = drawn_table(point_at(page, 0, 2).locator("table"))[0]
        found = decoded_row(store, 0, head)
        assert float(first[2]) == pytest.approx(
            found.probabilities[slice(*found.offsets[2:4])].max(), abs=1e-3
        )
        assert ("at most the teacher's own" in page.locator("#legend").inner_text()) == (head == "small")
    last = drawn_row(page, 3)
    assert last.locator(".t").all_inner_texts() == ["a"]
    last.locator(".t").hover()
    page.locator("#tip").wait_for(state="hidden")


def test_views_are_drawn_beside_their_likeliest_classes(
    tmp_path: Path, open_page: Callable[..., Any]
) -> None:
    spec = Spec(
        inputs=(Input("image", "|u1", (8, 6, 3)), Input("angle", "<f4", (2,))),
        heads=(Head("logits", 3, "single", Dense("float32")),),
        teacher={"kind": "fake", "fingerprint": "t", "labels": ["cat", "dog", "cow"]},
        views={"kind": "arrays", "fingerprint": "v"},
    )
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]], dtype=np.float32))
    rows = Rows(
        spec=spec,
        keys=["pets#0", "pets#0"],
        row=np.zeros(2, dtype=np.int64),
        view=np.arange(2, dtype=np.int32),
        views=np.full(2, 2, dtype=np.int32),
        targets=np.zeros(2, dtype=np.int32),
        inputs={
            "image": np.random.default_rng(0).integers(0, 256, (2, 8, 6, 3)).astype("|u1"),
            "angle": np.array([[0.5, 1], [2, 3]], dtype="<f4"),
        },
        heads={"logits": spec.heads[0].codec.encode(logits, np.zeros((2, 0)))},
    )
    store = make_store(tmp_path / "store", spec, rows)
    assert write_page(store, tmp_path / "page.html") == 2
    page = open_page(tmp_path / "page.html")
    view = drawn_row(page, 1)
    until(page, "[...document.querySelectorAll('article img')].filter((i) => i.complete).length === 2")
    sizes = page.locator("article img").evaluate_all(
        "all => all.map((i) => [i.naturalWidth, i.naturalHeight])"
    )
    assert sizes == [[6, 8], [6, 8]]
    assert [text.partition(" · ")[0] for text in page.locator(".facts").all_inner_texts()] == [
        "view 1 of 2",
        "view 2 of 2",
    ]
    tables = [[line[0], line[2], line[4]] for line in drawn_table(view.locator("table"))]
    assert tables[0] == ["cow", "0.800", "head"]
    assert [line[1] for line in tables] == ["0.800", "0.100", "0.100"]
    assert page.locator("article .inputs").first.inner_text() == "angle: [0.5, 1.0]"
    assert page.locator("#legend").inner_text() == ""
    page.locator("#search").fill("cow")
    assert page.locator("#count").inner_text() == "1 of 2 rows"


def test_a_store_without_any_row_has_a_page_too(
    small_job: Any, decant: Callable[..., Any], open_page: Callable[..., Any]
) -> None:
    assert decant(small_job.folder, "plan", str(small_job.file)).exit_code == 0
    assert decant(small_job.folder, "inspect", "store", "--html", "page.html").exit_code == 0
    page = open_page(small_job.folder / "page.html")
    assert page.locator("h1").inner_text() == "Nothing is labelled yet."
    assert "0 of 3 units committed" in page.locator("#progress").inner_text()
    assert page.locator(".tools").is_hidden()
