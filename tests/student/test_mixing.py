"""Several stores as one stream: in their shares, resumable; and lines that hold several rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.targets.errors import ConfigError
from student.data import Batch, TargetReader
from student.mixing import MixedReader, schedule
from student.packing import pack
from tests.student.workers import in_turns


@settings(max_examples=30)
@given(weights=st.lists(st.floats(0.01, 10), min_size=1, max_size=6), batches=st.integers(1, 200))
def test_no_store_is_ever_a_whole_batch_ahead_of_its_share(weights: list[float], batches: int) -> None:
    shares = [weight / sum(weights) for weight in weights]
    taken = [0] * len(weights)
    for n, chosen in enumerate(itertools.islice(schedule(shares, taken), batches), start=1):
        taken[chosen] += 1
        assert all(t - n * share < 1 + 1e-9 for t, share in zip(taken, shares, strict=True))


def mixture(urls: Sequence[str], weights: Sequence[float]) -> MixedReader:
    return MixedReader([TargetReader(url, batch_rows=4, split="all", heads=[]) for url in urls], weights)


def keys_of(batches: Iterable[Batch]) -> list[str]:
    return [key for batch in batches for key in batch.keys]


@pytest.mark.slow
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    weights=st.lists(st.floats(0.1, 10) | st.integers(1, 3), min_size=1, max_size=3),
    workers=st.integers(1, 4),
    batches=st.lists(st.integers(0, 12), min_size=1, max_size=3),
)
def test_a_mixture_in_workers_gives_the_order_of_one_process_wherever_it_is_interrupted(
    token_store: Any, weights: list[float], workers: int, batches: list[int]
) -> None:
    urls = [token_store([5 + n, 6], name=f"store{n}") for n in range(len(weights))]
    seen = in_turns(lambda: mixture(urls, weights), workers, batches)
    one = mixture(urls, weights)
    start = one.state_dict()
    assert seen == keys_of(itertools.islice(one, sum(batches)))
    assert one.advanced(start, sum(batches)) == one.state_dict()


def test_a_worker_whose_turn_never_comes_does_not_look_for_it_without_end(token_store: Any) -> None:
    """Almost equal weights: for a while each of two workers reads one store, then the other one."""
    urls = [token_store([5 + n, 6], name=f"store{n}") for n in range(2)]
    weights = (1, 1 + 1e-12)
    first = mixture(urls, weights)
    state = {**first.state_dict(), "taken": [10**9, 10**9 - 1]}

    def resumed() -> MixedReader:
        again = mixture(urls, weights)
        again.load_state_dict(state)
        return again

    chosen = list(itertools.islice(schedule(first.shares, state["taken"]), 6))
    assert chosen[0] == chosen[1] or chosen[1] == chosen[2], "here the stores change places"
    assert in_turns(resumed, 2, [6]) == keys_of(itertools.islice(resumed(), 6))


def test_a_stateful_dataloader_resumes_a_mixture_at_the_exact_batch(token_store: Any) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    urls = [token_store([5 + n, 6], name=f"store{n}") for n in range(2)]

    def loader() -> Any:
        return stateful.StatefulDataLoader(mixture(urls, (1, 2)), batch_size=None, num_workers=2)

    first, second = loader(), loader()
    seen = keys_of(itertools.islice(first, 5))
    second.load_state_dict(first.state_dict())
    seen += keys_of(itertools.islice(second, 5))
    assert seen == keys_of(itertools.islice(mixture(urls, (1, 2)), 10))


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
