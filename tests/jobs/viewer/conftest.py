"""A store of three rows, and its page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.viewer.page import write_page
from pipeline.targets import Quarantined, Store
from tests.jobs.viewer.stores import BIRDS, text_store


@pytest.fixture(scope="session")
def tokenizer(tokenizer_directory: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(tokenizer_directory / "tokenizer.json"))


@pytest.fixture(scope="session")
def birds(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> tuple[Store, Path]:
    """A store of three rows, and its page, alone in a folder. Only looked at."""
    folder = tmp_path_factory.mktemp("birds")
    lost = [Quarantined("owls.txt", 3, None, "undecodable", "owls.txt is no UTF-8 text")]
    store = text_store(folder / "store", tokenizer, BIRDS, quarantined=lost, planned=4)
    write_page(store, folder / "page.html", tokenizer=tokenizer)
    return store, folder / "page.html"
