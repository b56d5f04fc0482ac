"""Packed views against padded ones: the forward pass and its logits over the same short views, side by side.

    python -m benchmarks.packing --threads 2 --rounds 3

The random Llama of `benchmarks.material` with views of 16 to 256 tokens, which come as labelling would batch
them: those of like length together and padded, or several in a row of so many tokens. Each round runs all of
them one after the other; the figures are the medians of the rounds' ratios of views a second.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.material import VOCABULARY, tiny_language_model
from benchmarks.record import record
from pipeline.batching import Item, Part, Window, batches
from pipeline.targets.memory import keep_freed_memory
from pipeline.targets.spec import Input
from pipeline.teachers.base import Packs, Teacher
from pipeline.teachers.logits import as_logits
from pipeline.views.base import View

SHORTEST, LONGEST = 16, 256
BUDGET = 4096
ROWS = (256, 512, 1024)
INPUTS = (Input("tokens", "<u2", (None,)),)


def views(count: int) -> Window:
    """Tokens at random, in views whose lengths are as likely in each octave."""
    generator = np.random.default_rng(0)
    octaves = generator.uniform(np.log(SHORTEST), np.log(LONGEST), count)
    arrays = [generator.integers(0, VOCABULARY, round(x)).astype(np.uint16) for x in np.exp(octaves)]
    return Window([Item(str(i), i, 0, 1, View({"tokens": a}, len(a))) for i, a in enumerate(arrays)])


def padding(parts: Sequence[Part], row: int | None) -> float:
    """Share of what is computed that is no token."""
    tokens = sum(int(part.batch.lengths.sum()) for part in parts)
    if row is None:
        return 1 - tokens / sum(part.size for part in parts)
    from pipeline.teachers.packing import pack

    return 1 - tokens / sum(pack(part.batch, row).tokens.size for part in parts)


def seconds(teacher: Teacher, parts: Sequence[Part]) -> float:
    """Of the forward pass and the logits of every token, as encoding asks for them."""
    begun = time.perf_counter()
    with torch.inference_mode():
        for part in parts:
            logits = as_logits(teacher(part.batch)["logits"])
            longest = int(part.batch.lengths.max())
            places = np.concatenate(
                [i * longest + np.arange(length) for i, length in enumerate(part.batch.lengths.tolist())]
            )
            for chosen in torch.from_numpy(places).split(512):
                logits.rows(chosen)
    return time.perf_counter() - begun


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--views", type=int, default=300)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    window = views(arguments.views)
    with tempfile.TemporaryDirectory() as folder:
        config = tiny_language_model(Path(folder), 0.05).teacher
        ways = {}
        for row in (None, *ROWS):
            teacher = config.load()
            if row is not None:
                assert isinstance(teacher, Packs)
                teacher.pack(row)
            ways[row] = teacher, list(batches(window, INPUTS, BUDGET, row))
    for teacher, parts in ways.values():
        seconds(teacher, parts[:1])
    rounds = []
    for number in range(arguments.rounds):
        rounds.append({row: seconds(*way) for row, way in ways.items()})
        said = ", ".join(f"{row or 'padded'} {spent:.1f} s" for row, spent in rounds[-1].items())
        print(f"  round {number + 1}: {said}", flush=True)
    figures: dict[str, float] = {
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "views": arguments.views,
        "padding": round(padding(ways[None][1], None), 4),
    }
    for row in ROWS:
        figures[f"packed_{row}_over_padded"] = round(statistics.median(r[None] / r[row] for r in rounds), 3)
        figures[f"packed_{row}_padding"] = round(padding(ways[row][1], row), 4)
    record("packing", figures)


if __name__ == "__main__":
    main()
