"""A small real job: text files, a byte-level tokenizer trained on them, the fake teacher, a local engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.byte_level import byte_level

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

    @contextmanager
    def logging(self, *words: str) -> Iterator[tuple[subprocess.Popen[str], Iterator[dict[str, Any]]]]:
        """`decant label` of the job in a process of its own, and the lines of its log as they come."""
        command = [sys.executable, "-m", "jobs.cli", "label", str(self.file), "--log-format", "json", *words]
        with subprocess.Popen(
            command,
            cwd=self.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stderr is not None
            yield process, (json.loads(line) for line in process.stderr)

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
    folder.mkdir(parents=True, exist_ok=True)
    byte_level(texts, size).save(str(folder / "tokenizer.json"))


def make_small_job(folder: Path, tokenizer: Path) -> SmallJob:
    """Three files, three units, windows of 32 tokens; a run takes a fraction of a second of labelling."""
    corpus = folder / "corpus"
    corpus.mkdir()
    for name, text in TEXTS.items():
        (corpus / name).write_text(text * 8)
    return SmallJob(
        folder,
        {
            "corpus": {"kind": "text", "urls": ["corpus"], "unit_bytes": 100},
            "views": {"kind": "token_windows", "tokenizer": str(tokenizer), "length": 32},
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
