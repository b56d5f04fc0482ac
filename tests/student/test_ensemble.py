"""Several teachers' stores of one corpus read as one: the mean of their probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.targets.codecs import Codec, Dense, Threshold, TopK
from pipeline.targets.codecs.base import offsets_of
from pipeline.targets.errors import ConfigError, SpecMismatch, UserError
from pipeline.targets.ragged import Ragged
from pipeline.targets.rows import Rows
from pipeline.targets.spec import Head, Input, Spec
from pipeline.targets.store import Store
from student.cache import Cache
from student.data import TargetReader
from student.targets import TorchDense, TorchSparse
from tests.student.conftest import encode, unit_of, write_unit

V = 11


def probabilities(teacher: int, tokens: Any) -> Any:
    """A teacher's, of the next of each token."""
    logits = np.random.default_rng(teacher).normal(0, 2, (V, V))[tokens]
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


@pytest.fixture
def taught(tmp_path: Path) -> Any:
    """make(teacher, codec, …) -> URL of a store of two units, without the rows of `lacking`."""

    def make(
        teacher: int, codec: Codec, units: int = 2, lacking: tuple[str, ...] = (), shift: int = 0
    ) -> str:
        spec = Spec(
            inputs=(Input("tokens", "<u2", (None,)),),
            heads=(Head("logits", V, "next_token", codec),),
            teacher={"kind": "table", "fingerprint": str(teacher)},
            views={"kind": "windows", "fingerprint": "v"},
        )
        store = Store.create(str(tmp_path / f"{teacher}-{codec.kind}-{len(lacking)}-{units}-{shift}"), spec)
        for unit in range(units):
            random = np.random.default_rng(unit)
            every = [random.integers(0, V, int(n)) for n in random.integers(2, 7, 12)]
            keys = [f"{unit}/{i}" for i in range(12)]
            have = [i for i, key in enumerate(keys) if key not in lacking]
            tokens, sizes = [(every[i] + shift) % V for i in have], np.array([len(every[i]) for i in have])
            logits = np.log(probabilities(teacher, np.concatenate([row[:-1] for row in tokens])))
            rows = Rows(
                spec=spec,
                keys=[keys[i] for i in have],
                row=np.array(have),
                view=np.zeros(len(have), np.int32),
                views=np.ones(len(have), np.int32),
                targets=(sizes - 1).astype(np.int32),
                inputs={"tokens": Ragged(np.concatenate(tokens).astype("<u2"), offsets_of(sizes))},
                heads=encode(spec, [keys[i] for i in have], list(sizes - 1), logits.astype(np.float32)),
            )
            write_unit(store, unit_of(unit, 12), rows)
        return store.url

    return make


def read(urls: list[str], **changes: Any) -> Any:
    (batch,) = TargetReader(urls[0], teachers=urls[1:], batch_rows=24, split="all", **changes).epoch(0)
    return batch


def mean(batch: Any, lacking: tuple[str, ...] = ()) -> Any:
    """Of teachers 1 and 2, or of 1 alone."""
    parts = []
    for row, key in enumerate(batch.keys):
        tokens = batch.inputs["tokens"][row, : int(batch.counts[row])].numpy()
        both = [probabilities(teacher, tokens) for teacher in ((1,) if key in lacking else (1, 2))]
        parts.append(np.mean(both, axis=0))
    return np.concatenate(parts)


@pytest.mark.parametrize("cached", [False, True])
def test_dense_targets_are_the_mean_of_probabilities_of_those_that_have_the_row(
    taught: Any, tmp_path: Path, cached: bool
) -> None:
    lacking = ("0/3", "1/0")
    urls = [taught(1, Dense("float32")), taught(2, Dense("float16"), lacking=lacking)]
    batch = read(urls, cache=Cache(tmp_path / "cache", 10**8) if cached else None)
    targets = batch.targets["logits"]
    assert isinstance(targets, TorchDense)
    np.testing.assert_allclose(torch.softmax(targets.logits, -1).numpy(), mean(batch, lacking), atol=2e-3)
    np.testing.assert_allclose(targets.logits.exp().sum(-1).numpy(), 1, rtol=1e-5)


def test_sparse_targets_are_all_entries_each_with_its_share(taught: Any) -> None:
    lacking = ("0/3",)
    urls = [taught(1, Threshold(threshold=0.05)), taught(2, Threshold(threshold=0.1), lacking=lacking)]
    batch = read(urls)
    targets = batch.targets["logits"]
    assert isinstance(targets, TorchSparse)

    def dense(part: Any) -> Any:
        empty = torch.zeros(len(part), V)
        return empty.index_put((part.rows, part.ids), part.weights, accumulate=True).numpy()

    alone = [{k: (b, i) for b in [read([url])] for i, k in enumerate(b.keys)} for url in urls]
    at = 0
    for row, key in enumerate(batch.keys):
        count = int(batch.counts[row])
        wanted = []
        for teacher in alone:
            if key in teacher:
                other, place = teacher[key]
                start = int(other.counts[:place].sum())
                wanted.append(dense(other.targets["logits"].slice(start, start + count)))
        assert len(wanted) == (1 if key in lacking else 2)
        np.testing.assert_allclose(dense(targets.slice(at, at + count)), np.mean(wanted, axis=0), atol=1e-6)
        at += count


def test_what_has_no_mean_is_refused(taught: Any) -> None:
    dense = taught(1, Dense("float32"))
    with pytest.raises(ConfigError, match="stored as dense, topk"):
        read([dense, taught(2, TopK(k=3, betas=(1.0,)))])
    with pytest.raises(UserError, match="lacks 1 of the 2 units"):
        read([dense, taught(2, Dense("float32"), units=1)])
    with pytest.raises(SpecMismatch, match="other tokens"):
        read([dense, taught(2, Dense("float32"), shift=1)])


def test_a_state_is_of_the_teachers_that_were_averaged(taught: Any) -> None:
    first, second = taught(1, Dense("float32")), taught(2, Dense("float32"))
    both = TargetReader(first, teachers=[second], split="all")
    TargetReader(first, teachers=[second], split="all").load_state_dict(both.state_dict())
    with pytest.raises(ConfigError, match="teachers"):
        TargetReader(first, split="all").load_state_dict(both.state_dict())
