"""Several stores as one stream: in their shares, resumable; and lines that hold several rows."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.targets.errors import ConfigError
from student.data import TargetReader
from student.mixing import MixedReader
from student.packing import pack


class Counting:
    """A reader of numbers."""

    def __init__(self) -> None:
        self.at = 0

    def __iter__(self) -> Any:
        while True:
            self.at += 1
            yield self.at


@settings(max_examples=30)
@given(weights=st.lists(st.floats(0.01, 10), min_size=1, max_size=6), batches=st.integers(1, 200))
def test_no_store_is_ever_a_whole_batch_ahead_of_its_share(weights: list[float], batches: int) -> None:
    mixed = MixedReader([Counting() for _ in weights], weights)  # type: ignore[misc]
    for n, _ in enumerate(itertools.islice(mixed, batches), start=1):
        taken = [reader.at for reader in mixed.readers]  # type: ignore[attr-defined]
        assert sum(taken) == n
        assert all(t - n * share < 1 + 1e-9 for t, share in zip(taken, mixed.shares, strict=True))


def test_a_mixture_resumes_at_the_exact_batch_of_each_store(token_store: Any, image_store: Any) -> None:
    tokens, images = token_store(), image_store()

    def mixture(weights: tuple[float, float] = (1, 2)) -> MixedReader:
        readers = [
            TargetReader(tokens, batch_rows=3, split="all"),
            TargetReader(images, batch_rows=7, split="all"),
        ]
        return MixedReader(readers, weights)

    whole = [batch.keys for batch in itertools.islice(mixture(), 20)]
    assert [len(keys) for keys in whole[:6]] == [7, 3, 7, 7, 3, 7]
    first = mixture()
    seen = [batch.keys for batch in itertools.islice(first, 8)]
    second = mixture()
    second.load_state_dict(first.state_dict())
    seen += [batch.keys for batch in itertools.islice(second, 12)]
    assert seen == whole
    with pytest.raises(ConfigError, match="mixed by"):
        mixture((1, 3)).load_state_dict(first.state_dict())
    with pytest.raises(ConfigError, match="positive"):
        mixture((1, 0))


def test_packed_lines_hold_every_row_once_and_pick_what_the_rows_would(token_store: Any) -> None:
    (batch,) = TargetReader(token_store(), batch_rows=26, split="all").epoch(0)
    packed = pack(batch, 12)
    tokens, segments = packed.batch.inputs["tokens"], packed.segments
    assert tokens.shape[0] < len(batch)
    found = []
    for line in range(len(tokens)):
        for segment in range(1, int(segments[line].max()) + 1):
            mine = segments[line] == segment
            assert packed.positions[line][mine].tolist() == list(range(int(mine.sum())))
            found.append(tokens[line][mine].tolist())
    rows = [batch.inputs["tokens"][i, : int(n)].tolist() for i, n in enumerate(batch.lengths)]
    assert sorted(found) == sorted(rows)
    assert int((segments > 0).sum()) == int(batch.lengths.sum())
    labels, wanted = packed.batch.labels("logits"), batch.labels("logits")
    assert labels is not None
    assert wanted is not None
    assert torch.equal(labels, wanted)
    outputs = torch.nn.functional.one_hot(tokens, 23)
    picked = packed.batch.pick(outputs, "logits").argmax(-1)
    assert torch.equal(picked, batch.inputs["tokens"][batch.row_index, batch.position_index])
    with pytest.raises(ConfigError, match="tokens: lines of 5"):
        pack(batch, 5)


def test_buckets_pad_less_and_hold_every_row_once(token_store: Any) -> None:
    url = token_store([40] * 4, lengths=(2, 60))

    def padding(**changes: Any) -> float:
        batches = list(TargetReader(url, batch_rows=8, split="all", **changes).epoch(0))
        keys = sorted(key for batch in batches for key in batch.keys)
        assert keys == sorted(f"{s}/{i}" for s in range(4) for i in range(40))
        total = sum(batch.inputs["tokens"].numel() for batch in batches)
        return 1 - sum(int(batch.lengths.sum()) for batch in batches) / total

    assert padding(bucket_rows=80) < padding() / 3
    reader = TargetReader(url, batch_rows=8, split="all", bucket_rows=80)
    state = reader.state_dict()
    TargetReader(url, batch_rows=8, split="all", bucket_rows=80, world_size=2).load_state_dict(state)
    for changes in ({"batch_rows": 4}, {"bucket_rows": 0}):
        with pytest.raises(ConfigError, match="buckets"):
            TargetReader(
                url, **{"batch_rows": 8, "split": "all", "bucket_rows": 80, **changes}
            ).load_state_dict(state)
