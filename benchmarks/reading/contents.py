"""What is read: four kinds of content, as a Decant store and as the decoded samples that others keep.

A sample is what a student gets of a row, in the smallest dtypes that hold it: others are not charged for
int64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.reading.samples import DTYPES, Sample
from pipeline.targets.codecs import Codec, Dense, Embedding, Threshold
from pipeline.targets.codecs.base import Array, offsets_of, take, uniforms
from pipeline.targets.ragged import Ragged
from pipeline.targets.rows import Rows
from pipeline.targets.shards import shards_of
from pipeline.targets.spec import Head, Input, Spec
from pipeline.targets.store import Store
from pipeline.targets.unit import Slice, Unit
from student.table import Column, Table, lay_out

VOCABULARY, POOL = 32_000, 4096


@dataclass(frozen=True)
class Content:
    """Rows of one kind. rows: in all; shard_rows: in a shard; batch_rows: of a batch; lengths: tokens of a
    row from and to, log-uniform; None for rows without tokens. size: classes or features.
    """

    name: str
    rows: int
    shard_rows: int
    batch_rows: int
    codec: Codec
    size: int
    lengths: tuple[int, int] | None = None

    @property
    def fixed(self) -> bool:
        """Whether all rows have as many inputs and targets."""
        return self.lengths is None or self.lengths[0] == self.lengths[1]

    def fill(self, url: str) -> None:
        """Make the store: targets of Zipf-like teachers of varying sharpness, or noise where it is dense."""
        positions = "next_token" if self.lengths else "single"
        spec = Spec(
            inputs=(Input("tokens", "<u2", (None,)),) if self.lengths else (),
            heads=(Head("head", self.size, positions, self.codec),),  # type: ignore[arg-type]
            teacher={"kind": "benchmark", "fingerprint": "0"},
            views={"kind": "benchmark", "fingerprint": "0"},
        )
        store, random = Store.create(url, spec), np.random.default_rng(0)
        pool = self._pool(random)
        for shard in range(-(-self.rows // self.shard_rows)):
            unit = Unit((Slice("benchmark", shard, shard + 1, 1, ""),), 1)
            with store.writer(unit.id) as writer:
                writer.write(self._rows(spec, shard, pool, random))
                writer.commit(
                    records=self.shard_rows,
                    statistics={},
                    histograms={},
                    started=0.0,
                    forward_seconds=0.0,
                    device="",
                )
        store.compact()

    def _pool(self, random: np.random.Generator) -> dict[str, Array]:
        """Targets of which rows are made."""
        if not self.lengths:
            noise = random.normal(0, 2, (POOL, self.size)).astype(np.float32)
            return self.codec.encode_torch(torch.from_numpy(noise), np.zeros((POOL, 0)))
        ranks = np.log(np.arange(1, self.size + 1, dtype=np.float32))
        sharpness = random.uniform(1.0, 4.0, (POOL, 1)).astype(np.float32)
        shuffled = random.permuted(ranks[None].repeat(16, 0), axis=1)[np.arange(POOL) % 16]
        draws = uniforms(0, "head", "benchmark", 0, POOL, self.codec.draws)
        return self.codec.encode_torch(torch.from_numpy(-sharpness * shuffled), draws)

    def _rows(self, spec: Spec, shard: int, pool: dict[str, Array], random: np.random.Generator) -> Rows:
        count = self.shard_rows
        inputs: dict[str, Array | Ragged] = {}
        targets = np.zeros(count, dtype=np.int32)
        if self.lengths:
            low, high = np.log(self.lengths)
            lengths = np.exp(random.uniform(low, high, count)).round().astype(np.int64)
            tokens = random.integers(0, VOCABULARY, int(lengths.sum())).astype("<u2")
            inputs, targets = {"tokens": Ragged(tokens, offsets_of(lengths))}, (lengths - 1).astype(np.int32)
        chosen = random.integers(0, POOL, int(targets.sum()) if self.lengths else count)
        return Rows(
            spec=spec,
            keys=[f"{shard:05d}-{row:05d}" for row in range(count)],
            row=np.arange(count),
            view=np.zeros(count, dtype=np.int32),
            views=np.ones(count, dtype=np.int32),
            targets=targets,
            inputs=inputs,
            heads={"head": take(pool, self.codec.layout(self.size), chosen)},
        )


def samples(url: str) -> Iterator[Sample]:
    """The rows of a store, decoded, in the order of its units."""
    store = Store.open(url)
    for shard in shards_of(store):
        table = Table.concatenate([lay_out(rows) for rows in store.read(shard)])
        columns = {name: _named(table, name) for name in DTYPES}
        for row in range(len(table)):
            yield {
                name: _row(column, row).astype(DTYPES[name], copy=False)
                for name, column in columns.items()
                if column is not None
            }


def _named(table: Table, name: str) -> Column | None:
    return table.columns.get(f"in.{name}") or table.columns.get(f"head.{name}")


def _row(column: Column, row: int) -> Array:
    if column.bounds is not None:
        return column.values[column.bounds[row] : column.bounds[row + 1]]
    return column.values[row].reshape(-1)


CONTENTS = {
    content.name: content
    for content in (
        Content("sequences", 24_000, 1000, 64, Threshold(threshold=0.02), VOCABULARY, (128, 128)),
        Content("ragged", 3_000, 100, 16, Threshold(threshold=0.02), VOCABULARY, (16, 4096)),
        Content("logits", 48_000, 2000, 256, Dense(), 1000),
        Content("embeddings", 48_000, 2000, 256, Embedding(), 768),
    )
}
