"""Batches are made together, and that is nothing that a student could see."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from student import prefetch
from student.batch import Collator
from student.data import TargetReader


def contents(batch: Any) -> list[torch.Tensor]:
    """All tensors and host arrays of a batch."""
    found = [batch.lengths, batch.counts, batch.row_index, batch.position_index, *batch.inputs.values()]
    for targets in batch.targets.values():
        found += [
            torch.as_tensor(value) for _, value in sorted(vars(targets).items()) if hasattr(value, "shape")
        ]
    return found


@pytest.mark.parametrize("codec", ["dense", "topk", "topp", "threshold", "sampled", "embedding"])
@pytest.mark.parametrize("lengths", [(2, 9), (5, 5)])
def test_batches_made_together_are_those_made_alone(
    token_store: Any, monkeypatch: pytest.MonkeyPatch, codec: str, lengths: tuple[int, int]
) -> None:
    url = token_store(codec=codec, lengths=lengths)

    def batches(together: int) -> list[Any]:
        monkeypatch.setattr(prefetch, "TOGETHER", together)
        reader = TargetReader(url, batch_rows=2, split="all", window_shards=2)
        return [*reader.epoch(0), *reader.epoch(1)]

    for ours, alone in zip(batches(16), batches(1), strict=True):
        assert ours.keys == alone.keys
        for one, other in zip(contents(ours), contents(alone), strict=True):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)


def test_groups_grow_until_their_rows_weigh_enough(token_store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first batch does not wait for others, and large ones are made one at a time."""
    url, sizes, original = token_store(shards=(40, 40, 40, 40)), [], Collator.__call__

    def spied(self: Collator, table: Any, origins: Any, parts: Any) -> Any:
        sizes.append(len(parts))
        return original(self, table, origins, parts)

    monkeypatch.setattr(Collator, "__call__", spied)
    list(TargetReader(url, batch_rows=2, split="all").epoch(0))
    assert sizes[0] == 1
    assert max(sizes) > 4
    sizes.clear()
    monkeypatch.setattr(prefetch, "TOGETHER_BYTES", 1)
    list(TargetReader(url, batch_rows=2, split="all").epoch(0))
    assert set(sizes) == {1}


def test_a_batch_that_cannot_be_made_comes_in_its_place(
    token_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, original = token_store(shards=(40, 40, 40, 40)), Collator.__call__
    whole = [batch.keys for batch in TargetReader(url, batch_rows=2, split="all").epoch(0)]
    bad = len(whole) * 2 // 3

    def failing(self: Collator, table: Any, origins: Any, parts: Any) -> Any:
        if whole[bad][1] in table.keys:
            raise ValueError("this row")
        return original(self, table, origins, parts)

    monkeypatch.setattr(Collator, "__call__", failing)
    batches = TargetReader(url, batch_rows=2, split="all").epoch(0)
    assert [next(batches).keys for _ in range(bad)] == whole[:bad]
    with pytest.raises(ValueError, match="this row"):
        next(batches)
