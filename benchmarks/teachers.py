"""Language models that the benchmarks of targets label with: trained once, kept in a folder, used again.

The demo's own (Python sources, 2,048 tokens), and one of English novels with GPT-2's vocabulary of 50,257.
"""

from __future__ import annotations

import itertools
import math
import sys
import tarfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from tokenizers.implementations import ByteLevelBPETokenizer

from jobs.demo import sources, teacher
from pipeline.engine.local import Local
from pipeline.job import LabelJob
from pipeline.pilot import Pilot
from pipeline.prepare import prepare
from pipeline.targets.codecs import Codec, Threshold
from pipeline.targets.store import Store

HELD_OUT = 10
"""Novels, the last by name, that the teacher is not trained on."""

LARGE = 151_936
"""Classes of today's large vocabularies."""


@dataclass(frozen=True)
class Material:
    """A teacher, as a job names it, its tokenizer's folder, and texts that it has not seen.

    real: whether it is a model that has learned from such texts.
    """

    name: str
    teacher: dict[str, Any]
    tokenizer: Path
    unseen: list[Path]
    real: bool = True

    def job(self, store: Path, codec: Codec, unit_bytes: int = 2**16, at_least: float = math.inf) -> LabelJob:
        """Labels the texts, or as many of them as have so many bytes."""
        before = itertools.accumulate((path.stat().st_size for path in self.unseen), initial=0)
        urls = [str(path) for path, size in zip(self.unseen, before, strict=False) if size < at_least]
        return LabelJob.model_validate(
            {
                "corpus": {"kind": "text", "urls": urls, "unit_bytes": unit_bytes},
                "views": {"kind": "token_windows", "tokenizer": str(self.tokenizer), "length": 256},
                "teacher": self.teacher,
                "store": {"url": str(store), "heads": {"logits": codec.to_json()}},
            }
        )

    def pilot(self, targets: int) -> Pilot:
        """The teacher's answers to so many targets of the texts."""
        return Pilot(self.job(Path("nowhere"), Threshold()), targets)


def label(job: LabelJob) -> Store:
    """The finished store."""
    for _ in Local().run(job, prepare(job).pending(), threading.Event()):
        pass
    return Store.open(job.store.url)


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
    return Material("novels", _causal_lm(folder), folder, files[-HELD_OUT:])


def code(cache: Path, seconds: float) -> Material:
    """The demo's teacher, trained on this machine's Python sources for so long."""
    settings = teacher.TeacherSettings(seconds=seconds)
    found = sources.find(6_000_000, 2_000_000)
    folder = cache / f"code-{seconds:g}s"
    if teacher.kept(folder) is None:
        texts = teacher.read(found.teacher)
        train(folder, texts, teacher.train_tokenizer(texts, settings.vocabulary), settings)
    return Material("code", _causal_lm(folder), folder, list(found.labelled.paths))


def power_laws(cache: Path, real: Material, entropies: npt.NDArray[np.float64]) -> Material:
    """Targets over 151,936 classes that fall by a power of their rank, with the entropies given, nats [n]."""
    ranks = np.arange(1, LARGE + 1, dtype=np.float64)
    exponents = np.linspace(0.3, 6, 400)
    known = np.array([_entropy(ranks**-exponent) for exponent in exponents])
    fitted = np.interp(entropies, known[::-1], exponents[::-1])
    path = cache / "power-laws.npy"
    np.save(path, fitted.astype(np.float32))
    teacher = {
        "kind": "torch",
        "factory": "benchmarks.teachers:PowerLaws",
        "arguments": {"path": str(path)},
        "heads": {"logits": LARGE},
        "positions": "next_token",
    }
    return Material("power-laws", teacher, real.tokenizer, real.unseen, real=False)


class PowerLaws(torch.nn.Module):
    """Logits -s log(rank), with an exponent and an order of the classes for each token and position."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.register_buffer("exponents", torch.from_numpy(np.load(path)))
        self.register_buffer("logs", torch.arange(1, LARGE + 1).float().log())

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[views, L] to [views, L, V]."""
        seeds = tokens * 8191 + torch.arange(tokens.shape[1]) * 131
        exponents = self.exponents[seeds % len(self.exponents)]
        # Multiplying by what has no factor in common with V is an order of the classes.
        rank = (torch.arange(LARGE) * 104729 + seeds[..., None] * 15485863) % LARGE
        return -exponents[..., None] * self.logs[rank]


def _entropy(weights: npt.NDArray[np.float64]) -> float:
    p = weights / weights.sum()
    return float(-(p * np.log(p)).sum())


def _causal_lm(folder: Path) -> dict[str, Any]:
    return {"kind": "causal_lm", "path": str(folder), "device": "cpu"}


def train(folder: Path, texts: list[str], tokenizer: Tokenizer, settings: teacher.TeacherSettings) -> None:
    """A teacher of these texts, in a folder."""

    def progress(done: float, how: str) -> None:
        if sys.stderr.isatty():
            print(f"\r{folder.name}: {done:4.0%}, {how}", end="", file=sys.stderr, flush=True)

    model, trained = teacher.train(teacher.tokenize(tokenizer, texts), settings, progress)
    folder.parent.mkdir(parents=True, exist_ok=True)
    teacher.keep(folder, model, tokenizer, trained)
