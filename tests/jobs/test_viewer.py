"""The page of a store is one safe file, and in a real browser it shows what the store holds."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.distributions import distributions
from jobs.viewer import pictures
from jobs.viewer.data import pieces
from jobs.viewer.page import write_page
from pipeline.targets import Head, Input, Quarantined, Ragged, Rows, Slice, Spec, Store, Unit
from pipeline.targets.codecs import Codec, Dense, Threshold, TopK
from pipeline.targets.codecs.base import offsets_of
from pipeline.targets.errors import CorruptShard
from pipeline.targets.spec import Vocabulary

SIZE = 320
in_browser = pytest.mark.xdist_group("browser")

HOSTILE = [
    "</script><script>window.hacked=1</script>",
    "<img src=x onerror=window.hacked=1>",
    "<!--<script>",
    "--></title></style><svg onload=window.hacked=1>",
    "$style ${data} &lt;b&gt; \\u003cscript\\u003e",
    '"}]}\n\u2028\u2029\u202e\x00\x1b[31m',
]
"""Texts that would do harm where they were taken for anything but text."""


@pytest.fixture(scope="session")
def tokenizer(tokenizer_directory: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(tokenizer_directory / "tokenizer.json"))


def make_store(
    folder: Path,
    spec: Spec,
    rows: Rows,
    quarantined: Sequence[Quarantined] = (),
    planned: int = 1,
) -> Store:
    """A store of one committed unit, and so many planned ones."""
    store = Store.create(str(folder), spec)
    units = [Unit((Slice(f"file{i}", 0, 9, 9, "f"),), 9) for i in range(planned)]
    store.write_plan(units, {"kind": "text"}, after=0)
    with store.writer(units[0].id) as writer:
        writer.write(rows)
        for item in quarantined:
            writer.quarantine(item)
        writer.commit(
            records=len(rows) + len(quarantined),
            statistics={"logits.entropy": 2.5},
            histograms={"logits.entropy": [3, 0, 5, 1] + [0] * 36},
            started=1.7e9,
            forward_seconds=0.5,
            device="cpu",
        )
    return store


def text_store(
    folder: Path,
    tokenizer: Any,
    texts: Sequence[tuple[str, str]],
    codec: Codec | None = None,
    teacher: dict[str, Any] | None = None,
    others: tuple[Head, ...] = (Head("topic", 2, "single", Dense()),),
    **kept: Any,
) -> Store:
    """Rows of (key, text) of a teacher that knows nothing. codec: of its next tokens; others: more heads."""
    spec = Spec(
        inputs=(Input("tokens", "<u2", (None,)),),
        heads=(Head("logits", SIZE, "next_token", codec or Threshold(threshold=0.05)), *others),
        teacher={"kind": "fake", "fingerprint": "t", **(teacher or {})},
        views={"kind": "windows", "fingerprint": "v"},
        vocabulary=Vocabulary(tokenizer.get_vocab_size(), SIZE, "0" * 64),
    )
    ids = [tokenizer.encode(text).ids for _, text in texts]
    lengths = np.array([len(row) for row in ids])
    rng = np.random.default_rng(0)
    heads = {}
    for head in spec.heads:
        count = len(texts) if head.positions == "single" else int((lengths - 1).sum())
        logits = rng.normal(0, 3, (count, head.size)).astype(np.float32)
        heads[head.name] = head.codec.encode(logits, rng.random((count, head.codec.draws)))
    rows = Rows(
        spec=spec,
        keys=[key for key, _ in texts],
        row=np.arange(len(texts)),
        view=np.zeros(len(texts), dtype=np.int32),
        views=np.ones(len(texts), dtype=np.int32),
        targets=(lengths - 1).astype(np.int32),
        inputs={"tokens": Ragged(np.concatenate(ids).astype("<u2"), offsets_of(lengths))},
        heads=heads,
    )
    return make_store(folder, spec, rows, **kept)


BIRDS = [
    ("ducks.txt", "The duck swims on the pond.\nThe duck dives (for weeds)."),
    ("geese.txt", "A goose walks on the grass; geese graze where the grass is short."),
    ("swans.txt", "Swans build large nests: größer, 🦢 at the edge of the water."),
]


@pytest.fixture
def birds(tmp_path: Path, tokenizer: Any) -> tuple[Store, Path]:
    """A store of three rows, and its page."""
    lost = [Quarantined("owls.txt", 3, None, "undecodable", "owls.txt is no UTF-8 text")]
    store = text_store(tmp_path / "store", tokenizer, BIRDS, quarantined=lost, planned=4)
    write_page(store, tmp_path / "page.html", tokenizer=tokenizer)
    return store, tmp_path / "page.html"


def decoded_row(store: Store, at: int, head: str) -> Any:
    """What the store holds of one row's head."""
    (commit,) = store.commits()
    (rows,) = store.read(commit)
    row = rows.take(np.array([at]))
    return distributions(row.decode(head), 0, int(row.counts(store.spec.head(head))[0]))


def token(page: Any, row: int, at: int) -> Any:
    return page.locator("article").nth(row).locator(".t").nth(at)


def until(page: Any, holds: str) -> None:
    """Waits for an expression; the page's own policy lets no other tool of the browser do that."""
    for _ in range(500):
        if page.evaluate(holds):
            return
        page.wait_for_timeout(20)
    raise AssertionError(f"it never came: {holds}")


ON_SCREEN = """[...document.querySelectorAll('article')].filter((one) => {
    const box = one.getBoundingClientRect();
    return box.top < innerHeight && box.bottom > 0;
})"""


def drawn_table(table: Any) -> list[list[str]]:
    """The texts of a distribution's cells."""
    return [row.locator("th, td").all_inner_texts() for row in table.locator("tr").all()]


# The file


def test_the_page_asks_for_nothing_and_runs_its_own_script_alone(birds: tuple[Store, Path]) -> None:
    html = birds[1].read_text("utf-8")
    assert re.findall(r'\b(?:src|href|srcset|action)="([^"]*)"', html) == ["data:,"]
    assert not re.search(r"https?:|url\(|@import|innerHTML|\bimport\b|fetch\(", html)
    script = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    assert len(script) == 1
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert f"default-src 'none'; script-src 'sha256-{digest}'" in html
    assert [path.name for path in sorted(birds[1].parent.iterdir())] == ["page.html", "store"]


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


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=40), st.integers(0, 20), st.integers(0, 20))
def test_the_pieces_of_tokens_join_to_their_text(tokenizer: Any, text: str, skip: int, drop: int) -> None:
    ids = tokenizer.encode(text).ids
    ids = ids[skip : len(ids) - drop]
    found = pieces(tokenizer, ids)
    assert len(found) == len(ids)
    assert "".join(found) == tokenizer.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("shape", [(5, 7), (1, 5, 7), (3, 5, 7), (5, 7, 1), (5, 7, 3)])
@pytest.mark.parametrize("dtype", ["|u1", "<f4"])
def test_a_picture_has_the_pixels_of_its_array(shape: tuple[int, ...], dtype: str) -> None:
    from PIL import Image

    array = np.random.default_rng(0).integers(0, 256, shape).astype("|u1")
    expected = array.squeeze() if 1 in shape else array
    expected = np.moveaxis(expected, 0, 2) if shape[0] == 3 else expected
    values = array if dtype == "|u1" else (array / 255).astype(dtype)
    assert pictures.is_picture(values.shape, values.dtype)
    picture = pictures.draw(values)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(picture.png))), expected)
    assert picture.note == ""


def test_a_picture_of_any_size_and_range_becomes_a_small_one_that_says_so() -> None:
    from PIL import Image

    ramp = np.linspace(-2, 2, 1000 * 3, dtype=np.float32).reshape(3, 1000)
    picture = pictures.draw(np.repeat(ramp, 200, axis=0))
    pixels = np.asarray(Image.open(io.BytesIO(picture.png)))
    assert max(pixels.shape) <= pictures.LARGEST
    assert (np.diff(pixels.astype(int), axis=1) >= 0).all()
    assert picture.note == "black is -2, white 2, shrunk from 1000 × 600"
    flat = pictures.draw(np.array([[np.nan, np.inf], [7, 7]], dtype=np.float32))
    assert Image.open(io.BytesIO(flat.png)).size == (2, 2)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((64,), "|u1"), ((1, 64), "<f4"), ((2, 8, 8), "|u1"), ((8, 8), "<i8"), ((), "<f4")]
)
def test_what_is_no_picture_is_not_drawn(shape: tuple[int, ...], dtype: str) -> None:
    assert not pictures.is_picture(shape, np.dtype(dtype))


# In the browser


@in_browser
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
        article = page.locator("article").nth(row)
        article.scroll_into_view_if_needed()
        assert article.locator(".key").inner_text() == key
        shown = "".join(article.locator(".t:not(.part)").all_text_contents())
        assert shown == text.replace("\n", "↵\n")
    assert "on average below the teacher's own" in page.locator("#legend").inner_text()


@in_browser
def test_a_token_is_the_more_coloured_the_less_the_teacher_knows_what_follows(
    birds: tuple[Store, Path], open_page: Callable[..., Any]
) -> None:
    page = open_page(birds[1])
    entropy = decoded_row(birds[0], 1, "logits").entropy()
    names = page.locator("article").nth(1).locator(".t").evaluate_all("all => all.map((t) => t.className)")
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


@in_browser
@pytest.mark.parametrize("codec", [Threshold(threshold=0.05), TopK(k=20), Dense("float32")])
def test_hovering_shows_the_stored_distribution_and_what_really_came(
    tmp_path: Path, tokenizer: Any, open_page: Callable[..., Any], codec: Codec
) -> None:
    store = text_store(tmp_path / "store", tokenizer, BIRDS, codec)
    write_page(store, tmp_path / "page.html", tokenizer=tokenizer, entries=8)
    page = open_page(tmp_path / "page.html")
    found, ids = decoded_row(store, 0, "logits"), tokenizer.encode(BIRDS[0][1]).ids
    tip = page.locator("#tip")
    assert tip.is_hidden()
    marks = set()
    for at in (0, 3, 9):
        token(page, 0, at).hover()
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
    assert tip.is_hidden()


@in_browser
def test_the_keyboard_walks_over_the_tokens(birds: tuple[Store, Path], open_page: Callable[..., Any]) -> None:
    page = open_page(birds[1])
    page.locator("#search").focus()
    page.keyboard.press("Tab")
    where = "[document.activeElement.row, document.activeElement.at]"
    assert page.evaluate(where) == [0, 0]
    assert page.locator("#tip").is_visible()
    assert page.evaluate("document.activeElement.getAttribute('aria-describedby')") == "tip"
    last = len(tokenizer_ids(page, 0)) - 1
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


def tokenizer_ids(page: Any, row: int) -> list[str]:
    return list(page.locator("article").nth(row).locator(".t").all_text_contents())


@in_browser
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


@in_browser
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
        token(page, 0, 2).hover()
        found = decoded_row(store, 0, head)
        first = drawn_table(page.locator("#tip table"))[0]
        assert float(first[2]) == pytest.approx(
            found.probabilities[slice(*found.offsets[2:4])].max(), abs=1e-3
        )
        assert ("at most the teacher's own" in page.locator("#legend").inner_text()) == (head == "small")
    last = page.locator("article").nth(3)
    last.scroll_into_view_if_needed()
    assert last.locator(".t").all_inner_texts() == ["a"]
    last.locator(".t").hover()
    assert page.locator("#tip").is_hidden()


@in_browser
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
        article = page.locator("article").nth(row)
        article.scroll_into_view_if_needed()
        assert article.locator(".key").inner_text() == text
        assert "".join(article.locator(".t:not(.part)").all_text_contents()) == text
        token(page, row, 1).hover()
        assert page.locator("#tip").is_visible()
        words = article.locator(".classes .word").all_inner_texts()
        assert sorted(words) == sorted(HOSTILE[:2])
        assert page.locator("#quarantine tbody tr").nth(row).locator("bdi").all_inner_texts() == [text] * 2
    assert "\\u202e" in page.locator("article").nth(5).locator(".key").inner_text()
    for text in HOSTILE[2:5]:
        page.locator("#search").fill(text)
        assert page.locator("#count").inner_text() == f"1 of {len(HOSTILE)} rows"
    assert page.evaluate("window.hacked") is None
    assert page.locator("script").count() == 2
    assert page.locator("img, iframe, svg:not(.histogram svg)").count() == 0


@in_browser
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


@in_browser
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
    sizes = page.locator("article img").evaluate_all(
        "all => all.map((i) => [i.naturalWidth, i.naturalHeight])"
    )
    assert sizes == [[6, 8], [6, 8]]
    assert [text.partition(" · ")[0] for text in page.locator(".facts").all_inner_texts()] == [
        "view 1 of 2",
        "view 2 of 2",
    ]
    tables = [
        [line[0], line[2], line[4]] for line in drawn_table(page.locator("article").nth(1).locator("table"))
    ]
    assert tables[0] == ["cow", "0.800", "head"]
    assert [line[1] for line in tables] == ["0.800", "0.100", "0.100"]
    assert page.locator("article .inputs").first.inner_text() == "angle: [0.5, 1.0]"
    assert page.locator("#legend").inner_text() == ""
    page.locator("#search").fill("cow")
    assert page.locator("#count").inner_text() == "1 of 2 rows"


@in_browser
@pytest.mark.parametrize("width", [360, 500, 800, 1400])
def test_it_fits_every_screen_and_both_colour_schemes(
    birds: tuple[Store, Path], open_page: Callable[..., Any], width: int
) -> None:
    seen = set()
    for scheme in ("light", "dark"):
        page = open_page(birds[1], width=width, height=700, color_scheme=scheme)
        page.evaluate("document.getElementById('rows').scrollIntoView()")
        token(page, 1, 4).click()
        box = page.locator("#tip").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert box["y"] + box["height"] <= 701
        chosen = token(page, 1, 4).bounding_box()
        assert box["y"] >= chosen["y"] + chosen["height"] or box["y"] + box["height"] <= chosen["y"]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        seen.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(seen) == 2


# The command


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


@in_browser
def test_a_store_without_any_row_has_a_page_too(
    small_job: Any, decant: Callable[..., Any], open_page: Callable[..., Any]
) -> None:
    assert decant(small_job.folder, "plan", str(small_job.file)).exit_code == 0
    assert decant(small_job.folder, "inspect", "store", "--html", "page.html").exit_code == 0
    page = open_page(small_job.folder / "page.html")
    assert page.locator("h1").inner_text() == "Nothing is labelled yet."
    assert "0 of 3 units committed" in page.locator("#progress").inner_text()
    assert page.locator(".tools").is_hidden()
