"""A small real job, the command in this process, and a real browser for the pages that are written."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.jobs.small_jobs import TEXTS, SmallJob, make_small_job, train_tokenizer
from tests.student.conftest import token_store as token_store

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="session")
def tokenizer_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.json of 300 tokens."""
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(folder, list(TEXTS.values()))
    return folder


@pytest.fixture
def small_job(tmp_path: Path, tokenizer_directory: Path) -> SmallJob:
    """The small job in the test's own folder."""
    return make_small_job(tmp_path, tokenizer_directory)


@pytest.fixture
def decant(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`decant …` in this process, in a folder: fast, and with the same exit codes."""
    from typer.testing import CliRunner

    from jobs.cli import app

    def run(folder: Path, *words: str) -> Any:
        monkeypatch.chdir(folder)
        monkeypatch.setenv("COLUMNS", "200")
        return CliRunner().invoke(app, list(words), catch_exceptions=False)

    return run


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A real headless Chromium with a new and empty profile; tests are skipped where there is none.

    It lives no longer than a module: while it does, its thread counts as one that runs an event loop.
    """
    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next(filter(None, map(shutil.which, names)), None)
    if executable is None:
        pytest.skip("no Chromium is installed to open a page in (`make chromium` installs one)")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        quiet = ["background-networking", "component-update", "sync", "quic", "gpu"]
        arguments = ["--no-first-run", *(f"--disable-{name}" for name in quiet)]
        browser = playwright.chromium.launch(
            executable_path=executable, headless=True, chromium_sandbox=False, args=arguments
        )
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens a file. A page that fails, complains, or asks for anything but itself fails the test."""
    faults: list[str] = []
    contexts = []

    def request(url: str) -> None:
        if not url.startswith(("file:", "data:", "about:")):
            faults.append(f"asked for {url}")

    def opened(path: Path, width: int = 1200, height: int = 800, **settings: Any) -> Page:
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, **settings))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        page.on("request", lambda event: request(event.url))
        page.on("pageerror", lambda error: faults.append(f"failed: {error}"))
        page.on("console", lambda message: faults.append(f"said: {message.text}"))
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert faults == []
