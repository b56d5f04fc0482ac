"""Small real stores: known keys and tokens, encoded by the real codecs, written by the real store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.targets.codecs import Codec, Dense, Embedding, Sampled, Threshold, TopK, TopP
from pipeline.targets.codecs.base import offsets_of, uniforms
from pipeline.targets.ragged import Ragged
from pipeline.targets.rows import Rows
from pipeline.targets.spec import Container, Head, Input, Spec, Vocabulary
from pipeline.targets.store import Store
from pipeline.targets.unit import Slice, Unit

CODECS: dict[str, Codec] = {
    "dense": Dense(dtype="float32"),
    "topk": TopK(k=5, betas=(0.5, 1.0), dtype="float32"),
    "topp": TopP(p=0.9, k=6, betas=(0.5, 1.0), dtype="float32", slopes=True),
    "threshold": Threshold(threshold=0.05),
    "sampled": Sampled(draws=60),
    "embedding": Embedding(dtype="int8"),
}

MakeStore = Callable[..., str]


def write_unit(store: Store, unit: Unit, rows: Rows) -> None:
    with store.writer(unit.id) as writer:
        for start in range(0, len(rows), 7):  # several row groups
            writer.write(rows.take(np.arange(start, min(start + 7, len(rows)))))
        writer.commit(
            records=len(rows), statistics={}, histograms={}, started=0.0, forward_seconds=0.0, device="cpu"
        )


def unit_of(number: int, rows: int) -> Unit:
    return Unit((Slice(f"corpus-{number:03d}", 0, rows, rows, "f"),), rows)


def one_view_rows(
    spec: Spec, keys: Sequence[str], targets: Sequence[int], inputs: Any, logits: np.ndarray[Any, Any]
) -> Rows:
    """A view of each record. targets: of each row, 0 for a "single" head; logits: of all targets."""
    counts = list(targets) if spec.heads[0].positions == "next_token" else [1] * len(keys)
    return Rows(
        spec=spec,
        keys=keys,
        row=np.arange(len(keys)),
        view=np.zeros(len(keys), np.int32),
        views=np.ones(len(keys), np.int32),
        targets=np.asarray(targets, dtype=np.int32),
        inputs=inputs,
        heads=encode(spec, keys, counts, logits),
    )


def encode(spec: Spec, keys: Sequence[str], counts: Sequence[int], logits: np.ndarray[Any, Any]) -> Any:
    head = spec.heads[0]
    draws = np.concatenate(
        [uniforms(spec.seed, head.name, k, 0, n, head.codec.draws) for k, n in zip(keys, counts, strict=True)]
    )
    return {head.name: head.codec.encode(logits, draws)}


@pytest.fixture
def token_store(tmp_path: Path) -> MakeStore:
    """make(shards=[rows, …], codec="threshold", …) -> URL of a store of token rows of 2 to 9 tokens.

    The teacher's logits are a fixed table by token, so a student can learn them. Row i of shard s has the key
    "s/i".
    """

    def make(
        shards: Sequence[int] = (9, 12, 5),
        codec: str = "threshold",
        vocabulary: int = 23,
        name: str = "store",
        lengths: tuple[int, int] = (2, 9),
        container: Container = "parquet",
    ) -> str:
        spec = Spec(
            inputs=(Input("tokens", "<u2", (None,)),),
            heads=(Head("logits", vocabulary, "next_token", CODECS[codec]),),
            teacher={"kind": "table", "fingerprint": "t"},
            views={"kind": "windows", "fingerprint": "v"},
            container=container,
            vocabulary=Vocabulary(vocabulary, vocabulary, "tokenizer-a"),
        )
        url = str(tmp_path / name)
        if (tmp_path / name).exists():
            return url  # made by an earlier example of the same test
        store = Store.create(url, spec)
        table = np.random.default_rng(0).normal(0, 2, (vocabulary, vocabulary)).astype(np.float32)
        units = [unit_of(s, n) for s, n in enumerate(shards)]
        store.write_plan(units, {"kind": "test", "fingerprint": "c"}, store.generation())
        for s, (unit, n) in enumerate(zip(units, shards, strict=True)):
            rng = np.random.default_rng([s, n])
            sizes = rng.integers(lengths[0], lengths[1] + 1, n)
            tokens = [rng.integers(0, vocabulary, size).astype("<u2") for size in sizes]
            keys = [f"{s}/{i}" for i in range(n)]
            logits = table[np.concatenate([row[:-1] for row in tokens])]
            inputs = {"tokens": Ragged(np.concatenate(tokens), offsets_of(sizes))}
            write_unit(store, unit, one_view_rows(spec, keys, (sizes - 1).tolist(), inputs, logits))
        return url

    return make


@pytest.fixture
def shifted_store(tmp_path: Path) -> MakeStore:
    """make(shift) -> URL of a store whose teacher knows the next token, its targets `shift` places off."""

    def make(shift: int) -> str:
        spec = Spec(
            inputs=(Input("tokens", "<u2", (None,)),),
            heads=(Head("logits", 60, "next_token", Threshold(threshold=0.05)),),
            teacher={"kind": "oracle", "fingerprint": "t"},
            views={"kind": "windows", "fingerprint": "v"},
        )
        store = Store.create(str(tmp_path / f"shifted{shift}"), spec)
        units = [unit_of(number, 20) for number in range(3)]
        store.write_plan(units, {}, 0)
        for number, unit in enumerate(units):
            rng = np.random.default_rng(number)
            tokens = rng.integers(0, 60, (20, 12)).astype("<u2")
            logits = rng.normal(0, 1, (20, 11, 60)) + 4 * np.eye(60)[tokens[:, 1:]]
            logits = np.roll(logits, shift, axis=1).reshape(-1, 60).astype(np.float32)
            keys = [f"{number}/{i}" for i in range(20)]
            inputs = {"tokens": Ragged(tokens.reshape(-1), np.arange(21) * 12)}
            write_unit(store, unit, one_view_rows(spec, keys, [11] * 20, inputs, logits))
        return store.url

    return make


@pytest.fixture
def image_store(tmp_path: Path) -> MakeStore:
    """make(shards, codec="dense", …) -> URL of a store of images [1, 8, 8], with a linear teacher.

    first_label: of the first class; 0 is the only right one.
    """

    def make(
        shards: Sequence[int] = (20, 24, 16),
        codec: str = "dense",
        labels: bool = True,
        name: str = "images",
        container: Container = "parquet",
        first_label: int = 0,
    ) -> str:
        inputs = [Input("image", "|u1", (1, 8, 8))] + ([Input("label", "<u2", ())] if labels else [])
        spec = Spec(
            inputs=tuple(inputs),
            heads=(Head("logits", 4, "single", CODECS[codec]),),
            teacher={"kind": "linear", "fingerprint": "t"},
            views={"kind": "arrays", "fingerprint": "v"},
            container=container,
        )
        url = str(tmp_path / name)
        store = Store.create(url, spec)
        weights = np.random.default_rng(1).normal(0, 0.5, (64, 4))
        for s, n in enumerate(shards):
            rng = np.random.default_rng([7, s])
            images = rng.integers(0, 256, (n, 1, 8, 8)).astype(np.uint8)
            logits = ((images.reshape(n, 64) / 255 - 0.5) @ weights).astype(np.float32)
            keys = [f"{s}/{i}" for i in range(n)]
            values: dict[str, Any] = {
                "image": images,
                "label": (first_label + logits.argmax(1)).astype("<u2"),
            }
            shown = {item.name: values[item.name] for item in inputs}
            write_unit(store, unit_of(s, n), one_view_rows(spec, keys, [0] * n, shown, logits))
        return url

    return make


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
