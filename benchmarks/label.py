"""Labelling throughput over a bare forward loop on the same batches in memory, with the same threads.

    python -m benchmarks.label --threads 2 --rounds 3

Three teachers of random weights: a small language model on sources, ResNet-50 on JPEG files, an encoder of
texts. Each round runs, one after the other: the bare loop, the local engine and one Ray replica with all
threads; two bare loops side by side and two Ray replicas with one thread each. The figures are the medians of
the rounds' ratios, because the machine's speed may change between rounds. Start-up (Ray, loading the model)
is apart: an engine's clock runs from the first replica's Started to the last Committed.
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
from concurrent.futures import ThreadPoolExecutor
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
from pipeline.targets.store import Store
from pipeline.teachers.logits import as_logits

T = TypeVar("T")

RATIOS = {
    "local_over_bare": ("bare", "local"),
    "ray1_over_bare": ("bare", "ray1"),
    "ray2_over_bare": ("bare2", "ray2"),
}


def parts_of(job: LabelJob) -> list[Part]:
    """The batches that labelling would make, in memory."""
    store, renderer = prepare(job), job.views.load()
    budget, content = job.label.batching.largest(renderer.inputs), job.label.batching.content(renderer.inputs)
    found = []
    for unit in store.planned():
        for window in windows(render(chunks(job.corpus.read(unit), 16), renderer), content):
            found += batches(window, renderer.inputs, budget)
    return found


def bare(job: LabelJob, parts: Sequence[Part], meet: Callable[[], object] = lambda: None) -> float:
    """Seconds of the teacher's forward pass, all logits included, on batches one after the other.

    meet: called when the model is warm.
    """
    teacher = job.teacher.load()
    with torch.inference_mode():
        teacher(parts[0].batch)
        meet()
        begun = time.perf_counter()
        for part in parts:
            for answer in teacher(part.batch).values():
                as_logits(answer).whole()
        return time.perf_counter() - begun


def apart(function: Callable[..., T], *arguments: Any) -> T:
    """The function in a thread that ends with it, and torch's helper threads with that."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *arguments).result()


def side_by_side(job: LabelJob, parts: Sequence[Part], processes: int) -> float:
    """Seconds of so many bare loops of one thread each, which share the batches, until the last one ends."""
    context = multiprocessing.get_context("spawn")
    barrier, seconds = context.Barrier(processes), context.Queue()
    loops = [
        context.Process(
            target=_loop, args=(job.model_dump_json(), parts[number::processes], barrier, seconds)
        )
        for number in range(processes)
    ]
    for loop in loops:
        loop.start()
    found = max(seconds.get() for _ in loops)
    for loop in loops:
        loop.join()
    return float(found)


def _loop(job: str, parts: Sequence[Part], barrier: Any, seconds: Any) -> None:
    torch.set_num_threads(1)
    seconds.put(bare(LabelJob.model_validate_json(job), parts, barrier.wait))


def labelled(engine: Engine, job: LabelJob) -> float:
    """Seconds of an engine, from its last replica's start to the last commit."""
    shutil.rmtree(job.store.url, ignore_errors=True)
    begun = finished = 0.0
    for event in engine.run(job, prepare(job).pending(), threading.Event()):
        if isinstance(event, Started):
            begun = begun or time.perf_counter()
        elif isinstance(event, Committed):
            finished = time.perf_counter()
    return finished - begun


def with_replicas(job: LabelJob, number: int, threads: int) -> LabelJob:
    """The job on so many replicas, each with so many threads."""
    replicas = job.label.replicas.model_copy(update={"min": number, "max": number, "cpus": float(threads)})
    return job.model_copy(update={"label": job.label.model_copy(update={"replicas": replicas})})


def measure(job: LabelJob, threads: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of every run, by its kind."""
    parts = parts_of(job)
    runs: Mapping[str, Callable[[], float]] = {
        "bare": lambda: apart(bare, job, parts),
        "local": lambda: labelled(Local(), with_replicas(job, 1, threads)),
        "ray1": lambda: labelled(RayEngine(), with_replicas(job, 1, threads)),
        "bare2": lambda: side_by_side(job, parts, 2),
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
            job = apart(material.JOBS[name], Path(temporary), arguments.scale)
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
    worst = {ratio: min(figures[f"{name}.{ratio}"] for name in arguments.models) for ratio in RATIOS}
    record("label", {**worst, **figures, **vars(arguments)})


if __name__ == "__main__":
    main()
