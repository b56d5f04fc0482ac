"""Language models that the benchmarks of targets label with: trained once, kept in a folder, used again.

The demo's own (Python sources, 2,048 tokens), and one of English novels with GPT-2's vocabulary of 50,257.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.implementations import ByteLevelBPETokenizer

from jobs.demo import sources, teacher

HELD_OUT = 10
"""Novels, the last by name, that the teacher is not trained on."""


@dataclass(frozen=True)
class Material:
    """A teacher's transformers directory, and texts that it has not seen."""

    name: str
    teacher: Path
    unseen: list[Path]


def novels(data: Path, cache: Path, seconds: float) -> Material:
    """Trained on the novels of a data directory for so long. Raises FileNotFoundError without them."""
    texts = cache / "novels"
    if not texts.is_dir():
        with tarfile.open(data / "novels" / "novels100.tar.xz") as archive:
            archive.extractall(texts, filter="data")
    files = sorted(texts.rglob("*.txt"))
    settings = teacher.TeacherSettings(
        vocabulary=50257, width=256, layers=4, heads=4, hidden=768, steps=10**6, seconds=seconds
    )
    folder = cache / f"novels-{seconds:g}s"
    if teacher.kept(folder) is None:
        bpe = data / "tokenizers" / "gpt2"
        tokenizer = Tokenizer.from_str(
            ByteLevelBPETokenizer(str(bpe / "encoder.json"), str(bpe / "vocab.bpe")).to_str()
        )
        train(folder, [path.read_text(encoding="utf-8") for path in files[:-HELD_OUT]], tokenizer, settings)
    return Material("novels", folder, files[-HELD_OUT:])


def code(cache: Path, seconds: float) -> Material:
    """The demo's teacher, trained on this machine's Python sources for so long."""
    settings = teacher.TeacherSettings(seconds=seconds)
    found = sources.find(6_000_000, 2_000_000)
    folder = cache / f"code-{seconds:g}s"
    if teacher.kept(folder) is None:
        texts = teacher.read(found.teacher)
        train(folder, texts, teacher.train_tokenizer(texts, settings.vocabulary), settings)
    return Material("code", folder, list(found.labelled.paths))


def train(folder: Path, texts: list[str], tokenizer: Tokenizer, settings: teacher.TeacherSettings) -> None:
    """A teacher of these texts, in a folder."""

    def progress(done: float, how: str) -> None:
        print(f"\r{folder.name}: {done:4.0%}, {how}", end="", flush=True)

    model, trained = teacher.train(teacher.tokenize(tokenizer, texts), settings, progress)
    print()
    folder.parent.mkdir(parents=True, exist_ok=True)
    teacher.keep(folder, model, tokenizer, trained)
