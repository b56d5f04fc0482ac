"""The shards of a store as columns: the same as its commit records say, and the same names as ever."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pytest

from pipeline.targets.errors import CorruptShard
from pipeline.targets.shards import Shards, shards_of
from pipeline.targets.store import Store
from student import order
from student.order import blocks_of, fingerprint, order_of, spans


def shards(rows: list[int]) -> Shards:
    units = np.sort(np.array([hashlib.md5(b"%d" % i).hexdigest() for i in range(len(rows))], dtype="S32"))
    counts = np.array(rows, dtype=np.int64)
    return Shards(
        units, units.astype("S16"), np.char.add(units, units).astype("S64"), counts, counts, "parquet"
    )


@pytest.mark.parametrize("folded", [0, 3, 5])
def test_shards_are_those_of_the_commit_records_folded_or_not(token_store: Any, folded: int) -> None:
    url = token_store([4] * 5, name=f"store{folded}")
    store = Store.open(url)
    commits = sorted(store.commits(), key=lambda commit: commit.unit)
    if folded:
        store.compact()
    if folded == 3:  # two that came after
        store.discard([commit.unit for commit in commits[3:]])
        for commit in commits[3:]:
            store.publish(commit)
    found = shards_of(Store.open(url))
    assert [vars(shard) for shard in found] == [
        {name: getattr(commit, name) for name in ("unit", "shard", "shard_bytes", "shard_sha256", "rows")}
        for commit in commits
    ]


def test_names_that_a_manifest_cannot_have_are_refused() -> None:
    one = shards([3])
    bad = Shards(
        np.array([b"../../x"], "S32"),
        *(getattr(one, n) for n in ("attempts", "sha256", "sizes", "rows")),
        "parquet",
    )
    with pytest.raises(CorruptShard, match="cannot be"):
        bad[0]


@pytest.mark.parametrize("side", ["all", "train", "holdout"])
def test_a_fingerprint_is_the_hash_of_its_json_however_many_are_spelled_at_once(
    monkeypatch: pytest.MonkeyPatch, side: Any
) -> None:
    """States of interrupted runs have it: it may never change."""
    monkeypatch.setattr(order, "_SPELLED", 7)
    for count in (1, 7, 30):
        blocks = blocks_of(shards(list(range(5, 5 + count))), side, 0.3)
        content = [[b.shard.unit, b.shard.shard_sha256, b.start, b.stop] for b in blocks]
        text = json.dumps(["spec", content]).encode()
        assert fingerprint(blocks, "spec") == hashlib.blake2b(text, digest_size=16).hexdigest()


@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_from_a_position_on_is_the_rest_of_the_whole_epoch(shuffle: bool) -> None:
    blocks = blocks_of(shards([3, 1, 4, 1, 5, 9, 2]), "all", 0.0)

    def rows(position: int) -> list[tuple[int, int]]:
        return [
            (span.first + at, int(row))
            for span in spans(blocks, 1, 2, 3, shuffle, position)
            for at, row in enumerate(order_of(span, 1, shuffle))
        ]

    whole = rows(0)
    assert [place for place, _ in whole] == list(range(25))
    for position in range(25):
        rest = rows(position)
        assert rest == whole[25 - len(rest) :]
        assert rest[0][0] <= position
