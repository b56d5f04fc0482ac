"""Labelling throughput over a bare forward loop on the same batches in memory, with the same threads.

    python -m benchmarks.label --threads 2 --rounds 3

Teachers of random weights: a language model of SmolLM2-135M's shape on sources, ResNet-50 on JPEG files, an
encoder of texts; and, as a stress that the worst figures leave out, a language model of two million weights,
whose forward pass costs hardly more than its targets. Each round runs, one after the other: the bare loop,
the local engine and one Ray replica with all threads; two bare loops side by side and two Ray replicas with
one thread each. The figures are the medians of the rounds' ratios, because the machine's speed may change
between rounds. Start-up (Ray, loading the model) is apart: an engine's clock runs from the last replica's
Started to the last Committed.

Every run has processes of its own, as a Ray replica has: oneDNN compiles its kernels once a process for each
shape of a batch, which doubles the time of ResNet-50's first batch of that shape.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmarks import material
from benchmarks.record import record
from pipeline.batching import Part, batches, render, windows
from pipeline.engine.base import Committed, Engine, Started
from pipeline.engine.local import Local
from pipeline.engine.ray import RayEngine
from pipeline.job import LabelJob
from pipeline.prepare import prepare
from pipeline.stream import chunks
from pipeline.targets.memory import keep_freed_memory
from pipeline.targets.store import Store
from pipeline.teachers.logits import as_logits

T = TypeVar("T")

STRESS = "tiny_language_model"

RATIOS = {
    "local_over_bare": ("bare", "local"),
    "ray1_over_bare": ("bare", "ray1"),
    "ray2_over_bare": ("bare2", "ray2"),
}


def parts_of(job: LabelJob) -> list[Part]:
    """The batches that labelling would make, in memory."""
    store, renderer = prepare(job), job.views.load()
    budget, content = job.label.batching.largest(renderer.inputs), job.label.batching.content(renderer.inputs)
    found: list[Part] = []
    for unit in store.planned():
        for window in windows(render(chunks(job.corpus.read(unit), 16), renderer), content):
            found += batches(window, renderer.inputs, budget)
    return found


def bare(job: LabelJob, parts: Sequence[Part], meet: Callable[[], object]) -> float:
    """Seconds of the teacher's forward pass, all logits included, on batches one after the other.

    With the C library set as for labelling, which alone makes small models up to twice as fast: the ratio is
    then what all else costs. meet: called when the model is loaded, as a replica's clock starts then: what
    the first batches take longer, both pay.
    """
    keep_freed_memory()
    teacher = job.teacher.load()
    meet()
    with torch.inference_mode():
        begun = time.perf_counter()
        for part in parts:
            for answer in teacher(part.batch).values():
                as_logits(answer).whole()
        return time.perf_counter() - begun


def processes(function: Callable[..., T], arguments: Sequence[tuple[Any, ...]]) -> list[T]:
    """What the function returns in a new process for each of the arguments, all of them side by side."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(len(arguments), context) as pool:
        meet = manager.Barrier(len(arguments)).wait
        return [f.result() for f in [pool.submit(function, *each, meet) for each in arguments]]


def loops(job: LabelJob, parts: Sequence[Part], number: int, threads: int) -> float:
    """Seconds of so many bare loops of so many threads, which share the batches, until the last one ends."""
    return max(processes(_loop, [(job, parts[each::number], threads) for each in range(number)]))


def _loop(job: LabelJob, parts: Sequence[Part], threads: int, meet: Callable[[], object]) -> float:
    torch.set_num_threads(threads)
    return bare(job, parts, meet)


def _local(job: LabelJob, threads: int, meet: Callable[[], object]) -> float:
    torch.set_num_threads(threads)
    return labelled(Local(), job)


def _material(name: str, folder: str, scale: float, meet: Callable[[], object]) -> LabelJob:
    return material.JOBS[name](Path(folder), scale)


def labelled(engine: Engine, job: LabelJob) -> float:
    """Seconds that an engine needs for the job once all its replicas have started.

    They start one after the other; what the first ones label before the last one is there does not count, of
    units in flight by then as much as of their time has passed.
    """
    shutil.rmtree(job.store.url, ignore_errors=True)
    begun, commits = 0.0, list[tuple[float, Committed]]()
    for event in engine.run(job, prepare(job).pending(), threading.Event()):
        if isinstance(event, Started):
            begun = time.perf_counter()
        elif isinstance(event, Committed):
            commits.append((time.perf_counter(), event))
    done = sum(event.commit.rows * min(1.0, max(0.0, at - begun) / event.seconds) for at, event in commits)
    rows = sum(event.commit.rows for _, event in commits)
    return (max(at for at, _ in commits) - begun) * rows / done


def with_replicas(job: LabelJob, number: int, threads: int) -> LabelJob:
    """The job on so many replicas, each with so many threads."""
    replicas = job.label.replicas.model_copy(update={"min": number, "max": number, "cpus": float(threads)})
    return job.model_copy(update={"label": job.label.model_copy(update={"replicas": replicas})})


def measure(job: LabelJob, threads: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of every run, by its kind."""
    parts = parts_of(job)
    runs: Mapping[str, Callable[[], float]] = {
        "bare": lambda: loops(job, parts, 1, threads),
        "local": lambda: processes(_local, [(with_replicas(job, 1, threads), threads)])[0],
        "ray1": lambda: labelled(RayEngine(), with_replicas(job, 1, threads)),
        "bare2": lambda: loops(job, parts, 2, max(1, threads // 2)),
        "ray2": lambda: labelled(RayEngine(), with_replicas(job, 2, max(1, threads // 2))),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        for name, run in runs.items():
            seconds[name].append(run())
        print(
            f"  round {number + 1}: " + ", ".join(f"{n} {s[-1]:.1f} s" for n, s in seconds.items()),
            flush=True,
        )
    return seconds


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2, help="of torch, in all that run at a time")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of the corpora; 1 takes about 15 s a run")
    parser.add_argument("--models", nargs="+", choices=material.JOBS, default=list(material.JOBS))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    figures: dict[str, Any] = {}
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as temporary:
            job = processes(_material, [(name, temporary, arguments.scale)])[0]
            print(name, flush=True)
            seconds = measure(job, arguments.threads, arguments.rounds)
            commits = list(Store.open(job.store.url).commits())
        for ratio, (alone, ours) in RATIOS.items():
            pairs = zip(seconds[alone], seconds[ours], strict=True)
            figures[f"{name}.{ratio}"] = round(statistics.median(a / b for a, b in pairs), 3)
        targets = sum(commit.targets or commit.rows for commit in commits)
        figures[f"{name}.targets"] = targets
        figures[f"{name}.bare_targets_per_second"] = round(targets / min(seconds["bare"]), 1)
        figures[f"{name}.bytes_per_target"] = round(sum(c.shard_bytes for c in commits) / targets, 2)
    counted = [name for name in arguments.models if name != STRESS] or [STRESS]
    worst = {ratio: min(figures[f"{name}.{ratio}"] for name in counted) for ratio in RATIOS}
    record("label", {**worst, **figures, **vars(arguments)})


if __name__ == "__main__":
    main()
