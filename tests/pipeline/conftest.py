"""A corpus of words, a tokenizer for it, jobs on it with the fake teacher; and a tiny real model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

WORDS = 90
"""Words w0 … w89; the token of word i is i, that of any other word is WORDS."""


TEXTS = {
    f"{i:04}.txt": " ".join(f"w{(i * 7 + j * 3) % WORDS}" for j in range(5 + i * 11 % 200)) for i in range(40)
}
"""Of 5 to 204 words, by file name."""


JobMaker = Callable[..., Any]


@pytest.fixture
def texts() -> dict[str, str]:
    """The usual corpus, by file name."""
    return dict(TEXTS)


@pytest.fixture
def make_job(tmp_path: Path) -> JobMaker:
    """Makes LabelJobs in the test's folder: about nine units, about 150 views."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    from pipeline.job import LabelJob

    def make(
        texts: Mapping[str, str | bytes] | None = None,
        *,
        store: str = "store",
        heads: Mapping[str, Any] | None = None,
        teacher: Mapping[str, Any] | None = None,
        label: Mapping[str, Any] | None = None,
        unit_bytes: int = 2000,
        **sections: Any,
    ) -> LabelJob:
        fake = teacher or {}
        folder = tmp_path / "corpus"
        folder.mkdir(exist_ok=True)
        for name, text in (texts or TEXTS).items():
            path = folder / name
            if not path.exists():
                path.write_bytes(text if isinstance(text, bytes) else text.encode())
        vocabulary = {f"w{i}": i for i in range(WORDS)} | {"?": WORDS}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        return LabelJob.model_validate(
            {
                "corpus": {"kind": "text", "urls": [str(folder)], "unit_bytes": unit_bytes},
                "views": {"kind": "token_windows", "tokenizer": str(tmp_path), "length": 32},
                "teacher": {**({} if "kind" in fake else {"kind": "fake", "size": 128}), **fake},
                "store": {
                    "url": str(tmp_path / store),
                    "heads": heads or {"logits": {"kind": "threshold"}},
                },
                "label": {"batching": {"budget": 256, "window": 1}, **(label or {})},
                **sections,
            }
        )

    return make


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny real llama of random weights, with its tokenizer."""
    from tests.pipeline.tiny_llama import make_llama

    return make_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def changed_teacher(model_directory: Path, tmp_path: Path) -> Path:
    """The same model but for one layer's matrix, a tenth of which is other numbers."""
    from tests.pipeline.tiny_llama import change_a_layer

    return change_a_layer(model_directory, tmp_path / "changed")
