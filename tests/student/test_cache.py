"""Decoded shards on this machine: shared, bounded, whole whoever is killed when, and made again when
damaged."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.targets.errors import CorruptShard, UserError
from student.cache import Cache
from student.data import Batch, TargetReader

FORK = multiprocessing.get_context("fork")


def contents(batches: Iterable[Batch]) -> list[Any]:
    return [
        (
            b.keys,
            b.inputs,
            {n: t for n, t in vars(b.targets["logits"]).items() if isinstance(t, torch.Tensor)},
        )
        for b in batches
    ]


def reader(url: str, cache: Cache | None, **changes: Any) -> TargetReader:
    return TargetReader(url, **{"batch_rows": 5, "split": "all", "cache": cache, **changes})


def counted(reader: TargetReader) -> list[str]:
    """The shards that are read from the store from now on."""
    read, whole = [], reader.store.read

    def noted(shard: Any) -> Any:
        read.append(shard.unit)
        return whole(shard)

    reader.store.read = noted  # type: ignore[method-assign]
    return read


def assert_equal(ours: list[Any], theirs: list[Any]) -> None:
    for (keys, inputs, targets), (other_keys, other_inputs, other_targets) in zip(ours, theirs, strict=True):
        assert keys == other_keys
        for mine, other in ((inputs, other_inputs), (targets, other_targets)):
            assert mine.keys() == other.keys()
            assert all(torch.equal(mine[name], other[name]) for name in mine)


@pytest.mark.parametrize("codec", ["threshold", "sampled", "topp", "embedding"])
def test_from_the_cache_come_the_batches_of_the_store_and_the_store_is_read_once(
    token_store: Any, tmp_path: Path, codec: str
) -> None:
    url = token_store(codec=codec)
    plain = contents(reader(url, None).epoch(0))
    first = reader(url, Cache(tmp_path / "cache", 10**8))
    read = counted(first)
    assert_equal(contents(first.epoch(0)), plain)
    assert_equal(contents(first.epoch(0)), plain)
    assert len(read) == 3
    second = reader(url, Cache(tmp_path / "cache", 10**8))
    read = counted(second)
    assert_equal(contents(second.epoch(0)), plain)
    assert not read


def test_a_cache_never_holds_more_than_its_limit_and_lets_go_of_what_was_used_longest_ago(
    token_store: Any, tmp_path: Path
) -> None:
    url = token_store([40] * 6)
    everything = Cache(tmp_path / "all", 10**8)
    list(reader(url, everything).epoch(0))
    sizes = sorted(path.stat().st_size for path in (tmp_path / "all" / "tables").iterdir())
    limit = sum(sizes[-3:])
    cache = Cache(tmp_path / "small", limit)
    small = reader(url, cache, shuffle=False, window_shards=1)
    plain = contents(reader(url, None, shuffle=False).epoch(0))
    read = counted(small)
    for _ in range(2):
        assert_equal(contents(small.epoch(0)), plain)
        kept = [path.stat().st_size for path in (tmp_path / "small" / "tables").iterdir()]
        assert sum(kept) <= limit
        assert len(kept) >= 3
    assert len(read) == 12, "in order, the shard used longest ago is always the next one"
    assert_equal(contents(reader(url, Cache(tmp_path / "none", 10), shuffle=False).epoch(0)), plain)
    assert not list((tmp_path / "none" / "tables").iterdir()), "a table larger than the cache is not kept"


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty"])
def test_a_damaged_file_of_the_cache_is_made_again(token_store: Any, tmp_path: Path, damage: str) -> None:
    url = token_store()
    plain = contents(reader(url, Cache(tmp_path, 10**8)).epoch(0))
    for path in (tmp_path / "tables").iterdir():
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes({"flipped": data, "truncated": data[: len(data) // 2], "empty": b""}[damage])
    again = reader(url, Cache(tmp_path, 10**8))
    read = counted(again)
    assert_equal(contents(again.epoch(0)), plain)
    assert len(read) == 3


def test_a_shard_that_came_damaged_is_fetched_again_and_then_named(token_store: Any, tmp_path: Path) -> None:
    url = token_store()
    plain = contents(reader(url, None).epoch(0))
    once = reader(url, Cache(tmp_path, 10**8))
    storage, damaged = once.store.storage, set()
    whole = storage.read

    def cut_off(name: str) -> bytes:
        """Each shard arrives cut off the first time."""
        data = whole(name)
        if name in damaged:
            return data
        damaged.add(name)
        return data[: len(data) // 2]

    storage.read = cut_off  # type: ignore[method-assign]
    assert_equal(contents(once.epoch(0)), plain)
    assert len(damaged) == 3
    shard = next(Path(url).glob("shards/*/*.parquet"))
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(CorruptShard, match=shard.name):
        list(reader(url, None).epoch(0))


def test_a_process_that_is_killed_while_it_writes_leaves_a_cache_that_others_use(
    token_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = token_store()
    plain = contents(reader(url, None).epoch(0))
    reached = FORK.Event()

    def stuck(_: int) -> None:
        reached.set()
        time.sleep(60)

    def killed() -> None:
        monkeypatch.setattr(os, "fsync", stuck)
        list(reader(url, Cache(tmp_path, 10**8)).epoch(0))

    process = FORK.Process(target=killed)
    process.start()
    assert reached.wait(60)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    left = list((tmp_path / "tables").glob("writing-*"))
    assert left
    survivor = Cache(tmp_path, 10**8)
    assert_equal(contents(reader(url, survivor).epoch(0)), plain)
    assert not [path for path in left if path.exists()]
    assert len(list((tmp_path / "tables").iterdir())) == 3


def test_two_processes_make_each_table_once(token_store: Any, tmp_path: Path) -> None:
    url = token_store([30] * 8)
    reads = FORK.Queue()

    def run(seed: int) -> None:
        ours = reader(url, Cache(tmp_path, 10**8), seed=seed)
        read = counted(ours)
        rows = sum(map(len, ours.epoch(0)))
        reads.put((rows, read))

    processes = [FORK.Process(target=run, args=(seed,)) for seed in range(2)]
    for process in processes:
        process.start()
    found = [reads.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert [rows for rows, _ in found] == [240, 240]
    made = [unit for _, read in found for unit in read]
    assert len(made) == len(set(made)) == 8


def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="another directory"):
        Cache(tmp_path / "file", 10**6)


def test_arrays_of_the_cache_are_not_writable(token_store: Any, tmp_path: Path) -> None:
    """A batch is a copy: what a student does to it does not reach the pages that others read."""
    cached = reader(token_store(codec="embedding"), Cache(tmp_path, 10**8), shuffle=False)
    first = contents(cached.epoch(0))
    for batch in cached.epoch(0):
        batch.inputs["tokens"].zero_()
        batch.targets["logits"].vectors.zero_()
    assert_equal(contents(cached.epoch(0)), first)
    assert np.all(first[0][0])


def test_a_shard_without_targets_is_kept_too(token_store: Any, tmp_path: Path) -> None:
    url, cache = token_store(lengths=(1, 1)), Cache(tmp_path / "cache", 10**8)
    for _ in range(2):
        batches = list(TargetReader(url, split="all", cache=cache).epoch(0))
        assert sum(len(batch) for batch in batches) == 26
    assert len(list((tmp_path / "cache" / "tables").iterdir())) == 3
