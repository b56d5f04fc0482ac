"""Jobs whose views can be replayed, and their stores, labelled by a tiny real teacher."""

from __future__ import annotations

import io
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
import torch

from pipeline.corpus.base import NOTHING_PLANNED, Record, Source
from pipeline.job import LabelJob
from pipeline.label import Labeller
from pipeline.prepare import prepare
from pipeline.targets.store import Store
from pipeline.targets.unit import Slice, Unit
from tests.pipeline.views.pictures import encoded, picture

RECORDS = 40
VIEWS = 3


def tiny_teacher() -> torch.nn.Module:
    """Logits [views, 4] of one input of 192 numbers a view, with weights that are always the same."""

    class Linear(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(192, 4)

        def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
            (values,) = inputs.values()
            out: torch.Tensor = self.layer(values.float().flatten(1) / 64)
            return out

    torch.manual_seed(0)
    return Linear()


def recording(seed: int) -> bytes:
    """A wav file of noise, 0.1 to 0.3 s long."""
    samples = np.random.default_rng(seed).normal(0, 0.1, 800 + 100 * (seed % 17))
    file = io.BytesIO()
    soundfile.write(file, samples, 8000, format="WAV")
    return file.getvalue()


FILES = {
    "images": [encoded(picture(i, 12 + i % 5, 11)) for i in range(RECORDS)],
    "audio": [recording(i) for i in range(RECORDS)],
}

KINDS: dict[str, dict[str, Any]] = {
    "images": {
        "field": "array",
        "size": 8,
        "views": VIEWS,
        "crop": {"kind": "random"},
        "flip": 0.5,
        "jitter": {},
        "randaugment": {},
        "mix": {"probability": 0.5, "reach": 4},
        "dtype": "uint8",
    },
    "audio": {
        "field": "array",
        "rate": 11_025,
        "window": 1000,
        "log_mel": {"fft": 256, "hop": 64, "mels": 12},
    },
}


def labelled(
    folder: Path, inputs: str = "omit", container: str = "parquet", kind: str = "images"
) -> tuple[LabelJob, Store]:
    """A job of 40 files, of images each in 3 views, and its store.

    The files stand in rows of a NumPy array, filled up with zeros; what is in row 7 is no such file.
    """
    corpus = folder / f"{kind}.npy"
    if not corpus.exists():
        table = np.zeros((RECORDS, max(map(len, FILES[kind]))), dtype=np.uint8)
        for row, file in zip(table, FILES[kind], strict=True):
            row[: len(file)] = np.frombuffer(file, dtype=np.uint8)
        table[7] = 0
        np.save(corpus, table)
    settings = {
        "corpus": {"kind": "arrays", "urls": [str(corpus)], "unit_rows": 16},
        "views": {"kind": kind, **KINDS[kind]},
        "teacher": taught(tiny_teacher, 4, positions="single"),
        "store": stored(folder / f"{kind}-{inputs}-{container}", inputs, container),
        "label": {"max_quarantined": 0.1, "batching": {"window": 10, "budget": 7}},
    }
    return done(LabelJob.model_validate(settings))


def taught(factory: Callable[[], torch.nn.Module], classes: int, positions: str) -> dict[str, Any]:
    """One of the teachers here, as a job names it."""
    return {
        "kind": "torch",
        "factory": f"{__name__}:{factory.__name__}",
        "heads": {"logits": classes},
        "positions": positions,
        "device": "cpu",
    }


def stored(url: Path, inputs: str, container: str = "parquet") -> dict[str, Any]:
    """The store of a job, of exact logits."""
    heads = {"logits": {"kind": "dense", "dtype": "float32"}}
    return {"url": str(url), "heads": heads, "inputs": inputs, "container": container}


def done(job: LabelJob) -> tuple[LabelJob, Store]:
    """The job, and its store with all units labelled."""
    store = prepare(job)
    with closing(Labeller(job)) as labeller:
        for unit in store.pending():
            labeller.label(unit)
    return job, store


class Captioned(Source):
    """Records of an image and a text, made from their number. One file stands for them."""

    kind: Literal["captioned"] = "captioned"

    def units(self, planned: Mapping[str, str] = NOTHING_PLANNED) -> Iterator[Unit]:
        for start in range(0, RECORDS, 16):
            yield Unit((Slice("memory", start, min(start + 16, RECORDS), RECORDS, "f"),), 16)

    def read(self, unit: Unit) -> Generator[Record, None, None]:
        (part,) = unit.slices
        for row, i in enumerate(range(part.start, part.stop)):
            text = " ".join(f"w{(i * 7 + j) % 50}" for j in range(2 + i % 9))
            yield Record(f"{i}", row, {"image": FILES["images"][i], "text": text})


def seeing_teacher() -> torch.nn.Module:
    """Logits [views, L, 51] of next tokens, given an image [views, 3, 8, 8]."""

    class Seeing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.image = torch.nn.Embedding(51, 51), torch.nn.Linear(192, 51)

        def forward(self, tokens: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
            seen: torch.Tensor = self.image(image.float().flatten(1) / 255)
            said: torch.Tensor = self.token(tokens)
            return said + seen[:, None]

    torch.manual_seed(0)
    return Seeing()


def captioned(folder: Path, inputs: str) -> tuple[LabelJob, Store]:
    """A job of 40 images with texts, each image in 3 views, and its store."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {f"w{i}": i for i in range(50)} | {"?": 50}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    image = {name: value for name, value in KINDS["images"].items() if name not in ("mix", "field")}
    settings = {
        "corpus": {"kind": "text", "urls": ["replaced below"]},
        "views": {
            "kind": "image_text",
            "image": image,
            "text": {"tokenizer": str(folder / "tokenizer.json"), "length": 6},
        },
        "teacher": taught(seeing_teacher, 51, positions="next_token"),
        "store": stored(folder / f"captioned-{inputs}", inputs),
        "label": {"batching": {"budget": 64}},
    }
    return done(LabelJob.model_validate(settings).model_copy(update={"corpus": Captioned()}))
