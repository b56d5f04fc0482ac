"""Labelling jobs with a tiny real model, whose stores are audited."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.job import LabelJob
from tests.pipeline.audit.stores import CODECS
from tests.pipeline.tiny_llama import SENTENCES

WORDS = SENTENCES.split()


@pytest.fixture
def make(tmp_path: Path, model_directory: Path) -> Callable[..., LabelJob]:
    """Jobs on one corpus of 24 files in several units: make(codec=…, teacher=folder, store=name)."""

    def job(
        codec: str = "threshold",
        teacher: Path = model_directory,
        store: str = "store",
        container: str = "parquet",
    ) -> LabelJob:
        corpus = tmp_path / "corpus"
        if not corpus.exists():
            corpus.mkdir()
            for i in range(24):
                rng = np.random.default_rng(i)
                (corpus / f"{i:02}.txt").write_text(" ".join(rng.choice(WORDS, 20 + 5 * i)))
        return LabelJob.model_validate(
            {
                "corpus": {"kind": "text", "urls": [str(corpus)], "unit_bytes": 3000},
                "views": {"kind": "token_windows", "tokenizer": str(teacher), "length": 48},
                "teacher": {"kind": "causal_lm", "path": str(teacher), "device": "cpu"},
                "store": {
                    "url": str(tmp_path / store),
                    "heads": {"logits": CODECS[codec]},
                    "container": container,
                },
                "label": {"batching": {"budget": 512}},
            }
        )

    return job
