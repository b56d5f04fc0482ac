"""What a batch holds, and what a reader does when a shard is gone or damaged."""

from __future__ import annotations

import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.targets.errors import CorruptShard
from pipeline.targets.store import Store
from student import prefetch
from student.data import TargetReader
from student.targets import TorchDense, TorchEmbedding, TorchSparse, TorchTopK, TorchTopP
from student.window import Window


def stored(url: str) -> dict[str, Any]:
    """Key -> (tokens or image, decoded targets of the row alone), straight from the store."""
    store = Store.open(url)
    rows = {}
    for commit in store.commits():
        for part in store.read(commit):
            for i in range(len(part)):
                one = part.take(np.array([i]))
                rows[part.keys[i]] = (one, one.decode("logits"))
    return rows


@pytest.mark.parametrize("container", ["webdataset", "zarr"])
@pytest.mark.parametrize("codec", ["dense", "topk", "threshold"])
@pytest.mark.parametrize("kind", ["token_store", "image_store"])
def test_a_student_reads_every_container_as_it_reads_parquet(
    request: pytest.FixtureRequest, kind: str, codec: str, container: str
) -> None:
    make = request.getfixturevalue(kind)
    readers = [
        TargetReader(make(codec=codec, container=c, name=c), batch_rows=5, seed=3)
        for c in ("parquet", container)
    ]
    for ours, theirs in zip(*(reader.epoch(1) for reader in readers), strict=True):
        assert ours.keys == theirs.keys
        for name, tensor in ours.inputs.items():
            assert torch.equal(theirs.inputs[name], tensor)
        mine, other = vars(ours.targets["logits"]), vars(theirs.targets["logits"])
        for name, value in mine.items():
            np.testing.assert_array_equal(other[name], value)


@pytest.mark.parametrize("codec", ["dense", "topk", "topp", "threshold", "sampled", "embedding"])
def test_a_batch_has_each_rows_tokens_labels_and_targets(token_store: Any, codec: str) -> None:
    url = token_store(codec=codec)
    truth = stored(url)
    for batch in TargetReader(url, batch_rows=5, split="all").epoch(0):
        tokens, lengths = batch.inputs["tokens"], batch.lengths
        assert tokens.dtype == torch.int64
        assert tokens.shape == (len(batch), int(lengths.max()))
        labels = batch.labels("logits")
        assert (labels is None) == (codec == "embedding")
        at = 0
        for i, key in enumerate(batch.keys):
            row, targets = truth[key]
            length = int(lengths[i])
            own = row.inputs["tokens"][0].astype(np.int64)
            assert tokens[i, :length].tolist() == own.tolist()
            assert not tokens[i, length:].any()
            n = int(batch.counts[i])
            assert n == length - 1
            if labels is not None:
                assert labels[at : at + n].tolist() == own[1:].tolist()
            assert batch.row_index[at : at + n].tolist() == [i] * n
            assert batch.position_index[at : at + n].tolist() == list(range(n))
            mine = batch.targets["logits"].slice(at, at + n)
            if isinstance(mine, TorchEmbedding):
                assert np.array_equal(mine.vectors.numpy(), targets.vectors)
            elif isinstance(mine, TorchDense):
                assert np.array_equal(mine.logits.numpy(), targets.logits)
            elif isinstance(mine, TorchTopK):
                assert np.array_equal(mine.ids.numpy(), targets.ids)
                assert np.array_equal(mine.log_probs.numpy(), targets.log_probs)
                assert np.array_equal(mine.tail_log_mass.numpy(), targets.tail_log_mass)
            else:
                assert np.array_equal(mine.ids.numpy(), targets.ids)
                if isinstance(mine, TorchTopP):
                    assert np.array_equal(mine.log_probs.numpy(), targets.log_probs)
                    assert np.array_equal(mine.tail_slope.numpy(), targets.tail_slope)
                else:
                    assert np.array_equal(mine.weights.numpy(), targets.weights)
                assert np.array_equal(mine.bounds, targets.offsets)
                assert mine.rows.tolist() == np.repeat(np.arange(n), np.diff(targets.offsets)).tolist()
            at += n
        assert at == len(batch.targets["logits"]) == len(batch.row_index)


def test_picking_takes_the_outputs_that_have_a_target(token_store: Any) -> None:
    batch = next(TargetReader(token_store(), batch_rows=6, split="all").epoch(0))
    outputs = torch.randn(len(batch), int(batch.lengths.max()), 3)
    wanted = torch.cat([outputs[i, : int(n)] for i, n in enumerate(batch.counts)])
    assert torch.equal(batch.pick(outputs, "logits"), wanted)


def test_images_keep_their_shape_and_carry_their_label(image_store: Any) -> None:
    url = image_store()
    truth = stored(url)
    batch = next(TargetReader(url, batch_rows=8, split="all").epoch(0))
    assert batch.inputs["image"].dtype == torch.uint8
    assert batch.inputs["image"].shape == (8, 1, 8, 8)
    labels, targets = batch.labels("logits"), batch.targets["logits"]
    assert labels is not None
    assert isinstance(targets, TorchDense)
    for i, key in enumerate(batch.keys):
        row, wanted = truth[key]
        assert np.array_equal(batch.inputs["image"][i].numpy(), row.inputs["image"][0])
        assert int(labels[i]) == int(row.inputs["label"][0])
        assert np.array_equal(targets.logits[i].numpy(), wanted.logits[0])
    outputs = torch.randn(8, 4)
    assert batch.pick(outputs, "logits") is outputs


def test_without_labels_in_the_store_there_are_none(image_store: Any) -> None:
    batch = next(TargetReader(image_store(labels=False), batch_rows=8, split="all").epoch(0))
    assert batch.labels("logits") is None


def test_only_the_heads_asked_for_are_decoded(token_store: Any) -> None:
    url = token_store()
    assert next(TargetReader(url, split="all", heads=[]).epoch(0)).targets == {}
    assert isinstance(next(iter(TargetReader(url))).targets["logits"], TorchSparse)


def test_a_batch_moves_to_a_device_as_a_whole(token_store: Any) -> None:
    for codec in ("dense", "topk", "topp", "threshold", "sampled", "embedding"):
        batch = next(TargetReader(token_store(codec=codec, name=codec), split="all").epoch(0)).to("meta")
        tensors = [batch.lengths, batch.counts, batch.row_index, batch.position_index, *batch.inputs.values()]
        tensors += [v for v in vars(batch.targets["logits"]).values() if isinstance(v, torch.Tensor)]
        assert {t.device.type for t in tensors} == {"meta"}


@pytest.mark.parametrize("damage", ["missing", "flipped", "truncated"])
def test_a_bad_shard_is_named(token_store: Any, damage: str) -> None:
    url = token_store()
    shard = sorted(Path(url).glob("shards/*/*.parquet"))[1]
    data = bytearray(shard.read_bytes())
    if damage == "missing":
        shard.unlink()
    elif damage == "flipped":
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
    else:
        shard.write_bytes(data[: len(data) // 2])
    with pytest.raises(CorruptShard, match=shard.name):
        list(TargetReader(url, split="all", window_shards=1).epoch(0))


def test_at_most_two_windows_are_in_memory(token_store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a window is put together from what was loaded, there is at most the one in use."""
    alive: weakref.WeakSet[Window] = weakref.WeakSet()
    seen = []

    class Watched(Window):
        def __init__(self, parts: Any) -> None:
            seen.append(len(alive))
            alive.add(self)
            super().__init__(parts)

    monkeypatch.setattr(prefetch, "Window", Watched)
    reader = TargetReader(token_store([6] * 8), split="all", window_shards=2, batch_rows=5)
    assert sum(map(len, reader.epoch(0))) == 48
    assert len(seen) == 4
    assert max(seen) <= 1


def test_no_more_than_the_next_window_is_fetched_ahead(token_store: Any) -> None:
    reader = TargetReader(token_store([30] * 6), split="all", window_shards=2, batch_rows=2)
    whole, fetched = reader.store.read, []

    def read(commit: Any) -> Any:
        fetched.append(commit.unit)
        return whole(commit)

    reader.store.read = read  # type: ignore[method-assign]
    stream = iter(reader)
    next(stream)
    time.sleep(0.2)
    stream.close()  # type: ignore[attr-defined]
    assert len(fetched) <= 4


def test_leaving_an_iteration_leaves_no_thread(token_store: Any) -> None:
    before = threading.active_count()
    stream = iter(TargetReader(token_store(), split="all", window_shards=1, batch_rows=1))
    next(stream)
    assert threading.active_count() > before
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
