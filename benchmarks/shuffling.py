"""How well the two-level shuffle mixes, against a full shuffle of all rows. Arithmetic on orders: nothing is
read.

    python -m benchmarks.shuffling --shards 512 --rows 1000

- spread: of the rows of one shard, the standard deviation of their places in the epoch, over that of a full
  shuffle.
- shards: different shards in a batch, over those of a full shuffle's batch.
- entropy: of the shard ids in a batch, in bits, over that of a full shuffle's batch.
- apart: of pairs of rows that are neighbours in a shard, those that are in one batch, a thousand; rows of one
  document or one video follow each other.
"""

from __future__ import annotations

import argparse

import numpy as np

from benchmarks.record import record
from pipeline.targets.decoded import Ints
from pipeline.targets.shards import Shards
from student.order import blocks_of, order_of, spans


def epoch(shards: int, rows: int, window_shards: int) -> Ints:
    """The number of every row, in the reader's order; rows are numbered shard by shard."""
    units = np.array([f"{unit:032x}" for unit in range(shards)], dtype="S32")
    counts = np.full(shards, rows)
    columns = Shards(units, units.astype("S16"), units.astype("S64"), counts, counts, "parquet")
    blocks = blocks_of(columns, "all", 0.0)
    parts = []
    for span in spans(blocks, 0, 0, window_shards, True):
        laid = (span.blocks[:, None] * rows + np.arange(rows)).ravel()
        parts.append(laid[order_of(span, 0, True)])
    return np.concatenate(parts)


def quality(order: Ints, rows: int, batch_rows: int) -> dict[str, float]:
    """The numbers of the module's docstring, not yet as shares of a full shuffle's."""
    shard = order // rows
    places = np.argsort(order).reshape(-1, rows)
    batches = shard[: len(shard) // batch_rows * batch_rows].reshape(-1, batch_rows)
    ids = np.sort(batches, axis=1)
    kinds = 1 + (np.diff(ids, axis=1) != 0).sum(axis=1)
    entropies = []
    for batch in batches:
        share = np.bincount(batch) / batch_rows
        share = share[share > 0]
        entropies.append(-(share * np.log2(share)).sum())
    together = (places[:, 1:] // batch_rows == places[:, :-1] // batch_rows).mean()
    return {
        "spread": float(places.std(axis=1).mean()),
        "shards": float(kinds.mean()),
        "entropy": float(np.mean(entropies)),
        "apart": 1000 * float(together),
    }


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", type=int, default=512)
    parser.add_argument("--rows", type=int, default=1000, help="of a shard")
    parser.add_argument("--batch-rows", type=int, default=256)
    arguments = parser.parse_args()
    full = np.random.default_rng(0).permutation(arguments.shards * arguments.rows)
    best = quality(full, arguments.rows, arguments.batch_rows)
    figures: dict[str, dict[str, float]] = {"full": {name: round(value, 3) for name, value in best.items()}}
    for window_shards in (1, 4, 8, 16, 32, 64, 128):
        found = quality(
            epoch(arguments.shards, arguments.rows, window_shards), arguments.rows, arguments.batch_rows
        )
        shares = {name: round(found[name] / best[name], 3) for name in ("spread", "shards", "entropy")}
        figures[f"window_shards {window_shards}"] = {**shares, "apart": round(found["apart"], 2)}
    record("shuffling", {**figures, **vars(arguments)})


if __name__ == "__main__":
    main()
