"""A small real job: text files, a byte-level tokenizer trained on them, the fake teacher, a local engine.
And a real browser for the pages that are written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

TEXTS = {
    "ducks.txt": "The duck swims on the pond, and the duck dives for weeds. ",
    "geese.txt": "A goose walks on the grass; geese graze where the grass is short. ",
    "swans.txt": "Swans build large nests of reeds at the edge of the water. ",
}


@dataclass
class SmallJob:
    """A job file in a folder of its own, and the command on it. Paths in it are relative to the folder."""

    folder: Path
    settings: dict[str, Any]

    @property
    def file(self) -> Path:
        """The job file, written anew with the present settings."""
        path = self.folder / "job.yaml"
        path.write_text(yaml.safe_dump(self.settings, sort_keys=False))
        return path

    @property
    def store(self) -> Path:
        """The store's folder."""
        return self.folder / "store"

    def run(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """`decant …` in a process of its own, in the job's folder."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **options.pop("env", {})}
        return subprocess.run(
            [sys.executable, "-m", "jobs.cli", *words],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            **options,
        )


def train_tokenizer(folder: Path, texts: list[str], size: int = 300) -> None:
    """Writes a byte-level BPE tokenizer.json of at most `size` tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="session")
def tokenizer_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.json of 300 tokens."""
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(folder, list(TEXTS.values()))
    return folder


@pytest.fixture
def small_job(tmp_path: Path, tokenizer_directory: Path) -> SmallJob:
    """Three files, three units, windows of 32 tokens; a run takes a fraction of a second of labelling."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name, text in TEXTS.items():
        (corpus / name).write_text(text * 8)
    return SmallJob(
        tmp_path,
        {
            "corpus": {"kind": "text", "urls": ["corpus"], "unit_bytes": 100},
            "views": {"kind": "token_windows", "tokenizer": str(tokenizer_directory), "length": 32},
            "teacher": {"kind": "fake", "size": 320},
            "store": {"url": "store", "heads": {"logits": {"kind": "threshold", "threshold": 0.05}}},
            "train": {
                "output": "student",
                "model": {"kind": "small_lm", "layers": 1, "width": 32, "heads": 2},
                "steps": 4,
                "batch_rows": 4,
                "holdout": 0.3,
                "evaluate_every": 2,
                "checkpoint_every": 2,
                "log_every": 1,
            },
        },
    )


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
