"""What one more student costs: from the store, beside the teacher run again for it.

    python -m benchmarks.sweep --threads 1 --rounds 3

A small language model of random weights labels sources (`benchmarks.material`). Each round measures, in turn:
the bare teacher's forward passes over the corpus; labelling it by the local engine; one student's
epoch from the store; four students' epoch in one pass (`student.train.train_together`). A student with the
teacher in its loop would cost the bare passes and its own; the figures are medians over rounds of

    further_over_rerun     a further student of a pass, over one that has the teacher run again
    break_even_students    students of an epoch each from which labelling first takes less time in all
    reading_over_teacher   reading and decoding the store, over the teacher's passes
    student_over_teacher   a student's own share of a pass, over the teacher's passes

A student of two epochs counts as two: the teacher in the loop runs again for each.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import material
from benchmarks.label import bare, labelled, parts_of
from benchmarks.record import record
from pipeline.engine.local import Local
from student.config import SmallLM, StoreLocation, TrainConfig
from student.data import TargetReader
from student.train import train_together

STUDENTS = 4
"""In one pass; of one size, so that the further ones cost what the first one does, but for the reading."""

BATCH_ROWS = 32


def students(store: str, folder: Path, number: int) -> float:
    """Seconds of an epoch of so many students in one pass."""
    rows = TargetReader(store, holdout=0).rows
    steps = rows // BATCH_ROWS
    configs = [
        TrainConfig(
            store=StoreLocation(url=store),
            output=str(folder / str(each)),
            model=SmallLM(layers=1, width=64, heads=4),
            steps=steps,
            batch_rows=BATCH_ROWS,
            holdout=0,
            checkpoint_every=steps,
            check_rows=0,
            device="cpu",
        )
        for each in range(number)
    ]
    begun = time.perf_counter()
    for _ in train_together(configs):
        pass
    seconds = time.perf_counter() - begun
    shutil.rmtree(folder)
    return seconds


def reading(store: str) -> float:
    """Seconds of reading an epoch's batches alone."""
    begun = time.perf_counter()
    for _ in TargetReader(store, holdout=0, batch_rows=BATCH_ROWS).epoch(0):
        pass
    return time.perf_counter() - begun


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch, in all that run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=0.5, help="of the corpus; 1 is 1.5 MB of text")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    further, break_even, read, own = (list[float]() for _ in range(4))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        job = material.language_model(folder, arguments.scale)
        parts = parts_of(job)
        for number in range(arguments.rounds):
            teacher = bare(job, parts, lambda: None)
            label = labelled(Local(), job)
            one, four = (students(job.store.url, folder / "students", count) for count in (1, STUDENTS))
            store = reading(job.store.url)
            more = (four - one) / (STUDENTS - 1)
            further.append(more / (teacher + more))
            break_even.append((label + one - more) / teacher)
            read.append(store / teacher)
            own.append(more / teacher)
            print(
                f"round {number + 1}: teacher {teacher:.1f} s, labelling {label:.1f} s, "
                f"one student {one:.1f} s, four {four:.1f} s, reading {store:.2f} s",
                flush=True,
            )
    record(
        "sweep",
        {
            "further_over_rerun": round(statistics.median(further), 3),
            "break_even_students": round(statistics.median(break_even), 2),
            "reading_over_teacher": round(statistics.median(read), 3),
            "student_over_teacher": round(statistics.median(own), 3),
        },
    )


if __name__ == "__main__":
    main()
