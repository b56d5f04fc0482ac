"""Reading a store as decoded batches of tensors, over a bare loop of `np.frombuffer` on the same content.

    python -m benchmarks.read --threads 2 --rows 20000

Rows of 128 tokens with threshold targets. The bare loop has the decoded arrays (ids in 8 bytes, weights in 4,
as the reader hands them out) in one raw file each, memory-mapped, and cuts batches out of them in order: no
compression, no checksum, no shuffle. It is a bound, not a reader.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.record import record
from pipeline.targets.codecs import Threshold
from pipeline.targets.codecs.base import offsets_of, uniforms
from pipeline.targets.decoded import SparseTargets
from pipeline.targets.ragged import Ragged
from pipeline.targets.rows import Rows
from pipeline.targets.spec import Head, Input, Spec
from pipeline.targets.store import Store
from pipeline.targets.unit import Slice, Unit
from student.data import TargetReader

LENGTH, VOCABULARY, BATCH_ROWS, SHARD_ROWS = 128, 4096, 64, 1000


def spec_of(codec: Threshold) -> Spec:
    """A token store with one head."""
    return Spec(
        inputs=(Input("tokens", "<u2", (None,)),),
        heads=(Head("logits", VOCABULARY, "next_token", codec),),
        teacher={"kind": "benchmark", "fingerprint": "0"},
        views={"kind": "benchmark", "fingerprint": "0"},
    )


def fill(store: Store, rows: int) -> None:
    """Shards of Zipf-like targets of varying sharpness, about as many entries each as a real teacher's."""
    random = np.random.default_rng(0)
    targets = SHARD_ROWS * (LENGTH - 1)
    ranks = np.log(np.arange(1, VOCABULARY + 1, dtype=np.float32))
    codec = store.spec.heads[0].codec
    sharpness = random.uniform(1.0, 4.0, (targets, 1)).astype(np.float32)
    encoded = codec.encode_torch(
        torch.from_numpy(
            -sharpness * random.permuted(ranks[None].repeat(64, 0), axis=1)[np.arange(targets) % 64]
        ),
        uniforms(0, "logits", "benchmark", 0, targets, codec.draws),
    )
    for shard in range(-(-rows // SHARD_ROWS)):
        unit = Unit((Slice("benchmark", shard, shard + 1, 1, ""),), 1)
        tokens = random.integers(0, VOCABULARY, SHARD_ROWS * LENGTH).astype("<u2")
        with store.writer(unit.id) as writer:
            writer.write(
                Rows(
                    spec=store.spec,
                    keys=[f"{shard}-{row}" for row in range(SHARD_ROWS)],
                    row=np.arange(SHARD_ROWS),
                    view=np.zeros(SHARD_ROWS, dtype=np.int32),
                    views=np.ones(SHARD_ROWS, dtype=np.int32),
                    targets=np.full(SHARD_ROWS, LENGTH - 1, dtype=np.int32),
                    inputs={"tokens": Ragged(tokens, np.arange(SHARD_ROWS + 1) * LENGTH)},
                    heads={"logits": encoded},
                )
            )
            writer.commit(
                records=SHARD_ROWS, statistics={}, histograms={}, started=0.0, forward_seconds=0.0, device=""
            )


def read(url: str, shuffle: bool) -> float:
    """Rows per second of one epoch."""
    reader = TargetReader(url, batch_rows=BATCH_ROWS, split="all", shuffle=shuffle)
    begun = time.perf_counter()
    seen = sum(len(batch) for batch in reader.epoch(0))
    return seen / (time.perf_counter() - begun)


def lay_out(store: Store, folder: Path) -> int:
    """The decoded content as raw files; the number of rows."""
    counts = []
    with contextlib.ExitStack() as stack:
        tokens, ids, weights = (
            stack.enter_context(open(folder / name, "wb")) for name in ("tokens", "ids", "weights")
        )
        for commit in store.commits():
            for rows in store.read(commit):
                decoded, stored = rows.decode("logits"), rows.inputs["tokens"]
                assert isinstance(decoded, SparseTargets)
                assert isinstance(stored, Ragged)
                tokens.write(stored.values.astype("<i8").tobytes())
                ids.write(decoded.ids.tobytes())
                weights.write(decoded.weights.tobytes())
                counts.append(decoded.offsets[:: LENGTH - 1])
    entries = np.concatenate([np.diff(offsets) for offsets in counts])
    np.save(folder / "entries.npy", offsets_of(entries))
    return len(entries)


def bare(folder: Path) -> float:
    """Rows per second of cutting batches out of memory-mapped files."""
    tokens, ids, weights = (np.memmap(folder / name, np.uint8, "r") for name in ("tokens", "ids", "weights"))
    offsets = np.load(folder / "entries.npy")
    begun = time.perf_counter()
    for start in range(0, len(offsets) - 1, BATCH_ROWS):
        stop = min(start + BATCH_ROWS, len(offsets) - 1)
        low, high = int(offsets[start]), int(offsets[stop])
        part = tokens[start * LENGTH * 8 : stop * LENGTH * 8]
        torch.from_numpy(np.frombuffer(part, "<i8").reshape(-1, LENGTH).copy())
        torch.from_numpy(np.frombuffer(ids[low * 8 : high * 8], "<i8").copy())
        torch.from_numpy(np.frombuffer(weights[low * 4 : high * 4], "<f4").copy())
    return (len(offsets) - 1) / (time.perf_counter() - begun)


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threshold", type=float, default=0.02)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        store = Store.create(str(folder / "store"), spec_of(Threshold(threshold=arguments.threshold)))
        fill(store, arguments.rows)
        size = sum(commit.shard_bytes for commit in store.commits())
        rows = lay_out(store, folder)
        rates: dict[str, list[float]] = {"bare": [], "sequential": [], "shuffled": []}
        for number in range(arguments.rounds):
            rates["bare"].append(bare(folder))
            rates["sequential"].append(read(store.url, shuffle=False))
            rates["shuffled"].append(read(store.url, shuffle=True))
            figures = ", ".join(f"{name} {values[-1]:,.0f}" for name, values in rates.items())
            print(f"round {number + 1}: rows/s: {figures}", flush=True)
        entries = float(np.load(folder / "entries.npy")[-1]) / (rows * (LENGTH - 1))

    def over_bare(name: str) -> float:
        pairs = zip(rates[name], rates["bare"], strict=True)
        return round(statistics.median(ours / alone for ours, alone in pairs), 3)

    record(
        "read",
        {
            "sequential_over_bare": over_bare("sequential"),
            "shuffled_over_bare": over_bare("shuffled"),
            "sequential_tokens_per_second": round(max(rates["sequential"]) * LENGTH),
            "shuffled_tokens_per_second": round(max(rates["shuffled"]) * LENGTH),
            "entries_per_target": round(entries, 2),
            "bytes_per_target": round(size / (rows * (LENGTH - 1)), 2),
            **vars(arguments),
        },
    )


if __name__ == "__main__":
    main()
