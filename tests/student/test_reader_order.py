"""The order of samples: a function of (seed, epoch), whatever the ranks, restarts and batch sizes."""

from __future__ import annotations

import itertools
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.targets.errors import ConfigError, UserError
from student.data import TargetReader
from student.order import permutation
from tests.student.workers import in_turns

KEYS = [f"{s}/{i}" for s, n in enumerate((9, 12, 5)) for i in range(n)]


def reader(url: str, **changes: Any) -> TargetReader:
    return TargetReader(url, **{"batch_rows": 4, "split": "all", "window_shards": 2, **changes})


def keys_of(batches: Any) -> list[str]:
    return [key for batch in batches for key in batch.keys]


def test_an_epoch_holds_every_row_once(token_store: Any) -> None:
    url = token_store()
    for epoch in range(3):
        assert sorted(keys_of(reader(url).epoch(epoch))) == sorted(KEYS)


def test_order_depends_on_seed_and_epoch_and_on_nothing_else(token_store: Any) -> None:
    url = token_store()
    first = keys_of(reader(url).epoch(0))
    assert first == keys_of(reader(url, batch_rows=7).epoch(0))
    assert first == keys_of(reader(url, ahead=5, heads=[]).epoch(0))
    assert first != keys_of(reader(url).epoch(1))
    assert first != keys_of(reader(url, seed=1).epoch(0))
    assert first != KEYS
    assert {key.split("/")[0] for key in first[:8]} != {first[0].split("/")[0]}, "rows of a window are mixed"


def test_without_shuffling_rows_come_in_the_order_of_units(token_store: Any) -> None:
    keys = keys_of(reader(token_store(), shuffle=False).epoch(0))
    assert [
        [int(k.split("/")[1]) for k in group] for _, group in itertools.groupby(keys, lambda k: k[0])
    ] in [[list(range(n)) for n in sizes] for sizes in itertools.permutations((9, 12, 5))]


def test_training_goes_on_over_epochs_and_drops_no_row(token_store: Any) -> None:
    r = reader(token_store(), batch_rows=5)
    endless = keys_of(itertools.islice(r, 16))
    whole = [key for epoch in range(4) for key in keys_of(r.epoch(epoch))]
    assert endless == whole[:80]
    assert [len(b) for b in itertools.islice(r, 20)] == [5] * 20


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    worlds=st.lists(st.tuples(st.sampled_from([1, 2, 3, 4]), st.integers(0, 6)), min_size=1, max_size=4),
    batch_rows=st.sampled_from([12, 24]),
    window_shards=st.integers(1, 4),
)
def test_interrupted_and_resumed_on_other_worlds_nothing_is_seen_twice_or_missed(
    token_store: Any, worlds: list[tuple[int, int]], batch_rows: int, window_shards: int
) -> None:
    url = token_store(name=f"store{window_shards}")

    def make(rank: int = 0, world: int = 1) -> TargetReader:
        return reader(
            url, batch_rows=batch_rows, rank=rank, world_size=world, window_shards=window_shards, heads=[]
        )

    seen: list[str] = []
    state: dict[str, Any] | None = None
    for world, batches in worlds:
        ranks = [make(rank, world) for rank in range(world)]
        for r in ranks:
            if state is not None:
                r.load_state_dict(state)
        streams = [iter(r) for r in ranks]
        for _ in range(batches):
            seen += keys_of(next(stream) for stream in streams)
        states = [r.state_dict() for r in ranks]
        assert all(other == states[0] for other in states)
        state = states[0]
        for stream in streams:
            stream.close()  # type: ignore[attr-defined]
    total = sum(batches for _, batches in worlds)
    assert seen == keys_of(itertools.islice(make(), total))


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(world=st.integers(1, 5), per_rank=st.integers(1, 4))
def test_an_epoch_on_several_ranks_is_the_epoch_on_one(token_store: Any, world: int, per_rank: int) -> None:
    url = token_store()
    batch_rows = world * per_rank
    shares = [
        keys_of(reader(url, batch_rows=batch_rows, rank=r, world_size=world).epoch(0)) for r in range(world)
    ]
    assert sorted(itertools.chain(*shares)) == sorted(KEYS)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_train_and_holdout_share_no_shard_and_miss_none(token_store: Any) -> None:
    url = token_store([4] * 12)
    sides = {
        side: {k.split("/")[0] for k in keys_of(reader(url, split=side, holdout=0.3).epoch(0))}
        for side in ("train", "holdout", "all")
    }
    assert sides["train"] | sides["holdout"] == sides["all"]
    assert not sides["train"] & sides["holdout"]
    assert 1 <= len(sides["holdout"]) <= 8


@pytest.mark.parametrize("holdout", [0.001, 0.999])
def test_each_side_has_a_shard_whatever_the_share(token_store: Any, holdout: float) -> None:
    url = token_store([3, 3, 3])
    rows = [reader(url, split=side, holdout=holdout).rows for side in ("train", "holdout")]
    assert sorted(rows) == [3, 6]


def test_a_shard_keeps_its_side_when_the_store_grows(token_store: Any) -> None:
    small = reader(token_store([2] * 10, name="a"), split="holdout", holdout=0.4)
    large = reader(token_store([2] * 20, name="b"), split="holdout", holdout=0.4)
    first_ten = {b.shard.unit for b in reader(token_store([2] * 10, name="a")).blocks}
    assert {b.shard.unit for b in small.blocks} == {b.shard.unit for b in large.blocks} & first_ten


def test_a_store_of_one_shard_holds_out_its_last_rows(token_store: Any) -> None:
    url = token_store([10])
    train, held = (keys_of(reader(url, split=s, holdout=0.25).epoch(0)) for s in ("train", "holdout"))
    assert sorted(held) == ["0/7", "0/8", "0/9"]
    assert sorted(train) == [f"0/{i}" for i in range(7)]


def test_a_state_is_refused_where_the_order_would_differ(token_store: Any) -> None:
    url = token_store()
    state = reader(url).state_dict()
    for changes, word in (
        ({"seed": 1}, "seed"),
        ({"window_shards": 3}, "window_shards"),
        ({"split": "train"}, "split"),
    ):
        with pytest.raises(ConfigError, match=word):
            reader(url, **changes).load_state_dict(state)
    with pytest.raises(ConfigError, match="labelled further"):
        reader(token_store([9, 12, 6], name="other")).load_state_dict(state)
    with pytest.raises(ConfigError, match="version 2"):
        reader(url).load_state_dict({**state, "version": 2})
    with pytest.raises(ConfigError, match="position"):
        reader(url).load_state_dict({**state, "position": 27})


def test_impossible_worlds_and_empty_sides_are_refused(token_store: Any) -> None:
    url = token_store()
    with pytest.raises(ConfigError, match="batch_rows 4 cannot be shared equally by 3 ranks"):
        reader(url, world_size=3)
    with pytest.raises(ConfigError, match="rank 2"):
        reader(url, rank=2, world_size=2)
    with pytest.raises(UserError, match="no rows for 'holdout'"):
        reader(url, split="holdout", holdout=0.0)
    with pytest.raises(UserError, match="no store"):
        reader(url + "-not")


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(workers=st.integers(1, 5), batches=st.lists(st.integers(0, 12), min_size=1, max_size=3))
def test_workers_in_turns_give_the_order_of_one_and_go_on_where_they_were_interrupted(
    token_store: Any, workers: int, batches: list[int]
) -> None:
    """As a stateful loader does it: each worker has its own copy and its own state, also when it resumes."""
    url = token_store()
    seen = in_turns(lambda: reader(url, heads=[]), workers, batches)
    assert seen == keys_of(itertools.islice(reader(url), sum(batches)))


@pytest.mark.parametrize("workers", [0, 3])
def test_in_a_dataloader_the_batches_and_their_order_are_the_same(token_store: Any, workers: int) -> None:
    """Three workers take batches in turns, over the border of epochs too."""
    url = token_store()
    loader: Any = torch.utils.data.DataLoader(reader(url), batch_size=None, num_workers=workers)
    stream = iter(loader)
    assert keys_of(itertools.islice(stream, 9)) == keys_of(itertools.islice(reader(url), 9))
    if workers:
        stream._shutdown_workers()  # found as garbage, it would wait five seconds for its processes


@pytest.mark.parametrize(("workers", "batches"), [(0, 5), (2, 5), (3, 1)])
def test_a_stateful_dataloader_resumes_at_the_exact_batch(
    token_store: Any, workers: int, batches: int
) -> None:
    """Also where some of its workers had made no batch yet."""
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    url = token_store()

    def loader() -> Any:
        return stateful.StatefulDataLoader(reader(url), batch_size=None, num_workers=workers)

    first = loader()
    seen = keys_of(itertools.islice(first, batches))
    state = first.state_dict()
    second = loader()
    second.load_state_dict(state)
    seen += keys_of(itertools.islice(second, 5))
    assert seen == keys_of(itertools.islice(reader(url), batches + 5))


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.integers(0, 9), batches=st.integers(0, 30))
def test_a_state_is_told_without_reading_what_comes_before_it(
    token_store: Any, start: int, batches: int
) -> None:
    r, skipped = reader(token_store(), heads=[]), reader(token_store(), heads=[])
    skipped.skip(start)
    told = skipped.advanced(skipped.state_dict(), batches)
    for _ in itertools.islice(r, start + batches):
        pass
    assert told == r.state_dict()


def test_from_s3_come_the_batches_of_the_local_store(
    token_store: Any, s3_bucket_url: tuple[str, dict[str, Any]]
) -> None:
    local = token_store()
    remote, options = s3_bucket_url
    fsspec.filesystem("s3", **options).put(local, remote, recursive=True)
    r = reader(remote, options=options)
    assert keys_of(r.epoch(1)) == keys_of(reader(local).epoch(1))
    first = keys_of(itertools.islice(r, 3))
    resumed = reader(remote, options=options)
    resumed.load_state_dict(r.state_dict())
    assert first + keys_of(itertools.islice(resumed, 3)) == keys_of(itertools.islice(reader(local), 6))


def test_permutations_are_frozen() -> None:
    """What a seed means may never change between releases, or resumed runs would read another order."""
    assert permutation(8, 0, 0).tolist() == [0, 6, 7, 5, 3, 4, 1, 2]
    assert sorted(permutation(1000, 3, 1, 4).tolist()) == list(range(1000))
    assert len(permutation(0, 1)) == 0
    first = np.array([permutation(50, seed)[0] for seed in range(400)])
    assert len(set(first.tolist())) == 50
