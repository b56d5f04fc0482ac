"""Labelling throughput over a bare forward loop on the same batches in memory, with the same threads.

    python -m benchmarks.label --threads 2 --megabytes 3 --rounds 3

Each round runs the bare loop, the local engine and one Ray replica one after the other; the figures are the
medians of the rounds' ratios, because the machine's speed may change between rounds. Start-up (Ray, loading
the model) is apart: an engine's clock runs from the first replica's Started to the last Committed.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from benchmarks.material import corpus, language_model
from benchmarks.record import record
from pipeline.batching import Part, batches, render, windows
from pipeline.engine.base import Committed, Engine, Started
from pipeline.engine.local import Local
from pipeline.engine.ray import RayEngine
from pipeline.job import LabelJob
from pipeline.prepare import prepare
from pipeline.stream import chunks
from pipeline.targets.store import Store
from pipeline.teachers import CausalLM

T = TypeVar("T")


def job_of(folder: Path, texts: Path, model: Path, arguments: argparse.Namespace) -> LabelJob:
    """The job that all three run, but for its store."""
    return LabelJob.model_validate(
        {
            "corpus": {"kind": "text", "urls": [str(texts)], "unit_bytes": arguments.unit_bytes},
            "views": {"kind": "token_windows", "tokenizer": str(model), "length": arguments.length},
            "teacher": {"kind": "causal_lm", "path": str(model), "device": "cpu"},
            "store": {
                "url": str(folder / "store"),
                "heads": {"logits": {"kind": "threshold", "threshold": arguments.threshold}},
            },
            "label": {"replicas": {"cpus": arguments.threads}},
        }
    )


def parts_of(job: LabelJob, store: Store) -> list[Part]:
    """The batches that labelling would make, in memory."""
    renderer, batching = job.views.load(), job.label.batching
    budget, content = batching.largest(renderer.inputs), batching.content(renderer.inputs)
    found = []
    for unit in store.planned():
        for window in windows(render(chunks(job.corpus.read(unit), 16), renderer), content):
            found += batches(window, renderer.inputs, budget)
    return found


def bare(job: LabelJob, parts: list[Part]) -> float:
    """Seconds of the model's own forward pass to logits on all batches, one after the other."""
    assert isinstance(job.teacher, CausalLM)
    model = AutoModelForCausalLM.from_pretrained(job.teacher.path).eval()
    batches = []
    for part in parts:
        tokens, lengths = part.batch.inputs["tokens"].astype(np.int64), part.batch.lengths
        mask = torch.from_numpy(np.arange(tokens.shape[1]) < lengths[:, None])
        padded = {} if bool(mask.all()) else {"attention_mask": mask.long()}
        batches.append({"input_ids": torch.from_numpy(tokens), **padded})
    with torch.inference_mode():
        model(**batches[0], use_cache=False)
        begun = time.perf_counter()
        for batch in batches:
            model(**batch, use_cache=False)
        return time.perf_counter() - begun


def apart(function: Callable[..., T], *arguments: Any) -> T:
    """The function in a thread that ends with it, and torch's helper threads with that."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *arguments).result()


def labelled(engine: Engine, job: LabelJob) -> float:
    """Seconds of an engine, from its first replica's start to the last commit."""
    shutil.rmtree(job.store.url, ignore_errors=True)
    begun = finished = 0.0
    for event in engine.run(job, prepare(job).pending(), threading.Event()):
        if isinstance(event, Started):
            begun = time.perf_counter()
        elif isinstance(event, Committed):
            finished = time.perf_counter()
    return finished - begun


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2, help="of torch, in each of the three")
    parser.add_argument("--megabytes", type=float, default=3, help="of corpus")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", type=Path, help="a transformers directory instead of random weights")
    parser.add_argument("--length", type=int, default=256, help="tokens of a window")
    parser.add_argument("--hidden", type=int, default=192, help="width of the model")
    parser.add_argument("--layers", type=int, default=4, help="layers of the model")
    parser.add_argument("--threshold", type=float, default=0.02)
    parser.add_argument("--unit-bytes", type=int, default=500_000)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        texts = corpus(folder / "corpus", arguments.megabytes)
        model = arguments.model or apart(
            language_model, folder / "model", texts, arguments.hidden, arguments.layers
        )
        job = job_of(folder, texts, model, arguments)
        parts = parts_of(job, prepare(job))
        targets = sum(int((part.batch.lengths - 1).sum()) for part in parts)
        seconds: dict[str, list[float]] = {"bare": [], "local": [], "ray1": []}
        for number in range(arguments.rounds):
            seconds["bare"].append(apart(bare, job, parts))
            seconds["local"].append(labelled(Local(), job))
            seconds["ray1"].append(labelled(RayEngine(), job))
            figures = ", ".join(f"{name} {targets / values[-1]:,.0f}" for name, values in seconds.items())
            print(f"round {number + 1}: targets/s: {figures}", flush=True)
        store = Store.open(job.store.url)
        size = sum(commit.shard_bytes for commit in store.commits())

    def ratio(name: str) -> float:
        pairs = zip(seconds["bare"], seconds[name], strict=True)
        return round(statistics.median(alone / ours for alone, ours in pairs), 3)

    record(
        "label",
        {
            "local_over_bare": ratio("local"),
            "ray1_over_bare": ratio("ray1"),
            "bare_targets_per_second": round(targets / min(seconds["bare"])),
            "bytes_per_target": round(size / targets, 2),
            "targets": targets,
            **vars(arguments) | {"model": "given" if arguments.model else "random"},
        },
    )


if __name__ == "__main__":
    main()
