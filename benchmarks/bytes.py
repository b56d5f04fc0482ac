"""Bytes per target of each codec on a real teacher: the shards' files, everything counted.

    python -m benchmarks.bytes --model demo-output/text/cache/teacher-…

Without --model, a small language model is trained for a minute first. The corpus is text it has not seen;
the token ids and keys, which every store holds beside its targets, are counted in each figure. The gradient's
error is the mean over targets of |p_hat - p|², what a student's gradient at its logits is off by.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.record import record
from jobs.demo import sources, teacher
from pipeline.engine.local import Local
from pipeline.job import LabelJob
from pipeline.prepare import prepare
from pipeline.targets.decoded import DenseTargets, SparseTargets, Targets, TopKTargets, TopPTargets

CODECS: dict[str, dict[str, Any]] = {
    "dense_float32": {"kind": "dense", "dtype": "float32"},
    "dense_float16": {"kind": "dense", "dtype": "float16"},
    "topk_16": {"kind": "topk", "k": 16},
    "topk_64": {"kind": "topk", "k": 64},
    "topp_0.9": {"kind": "topp", "p": 0.9},
    "sampled_50": {"kind": "sampled", "draws": 50},
    **{f"threshold_{value}": {"kind": "threshold", "threshold": value} for value in (0.02, 0.05, 0.12, 0.3)},
}
REFERENCE = "dense_float32"


def trained(folder: Path, seconds: float) -> Path:
    """A teacher trained on the demo's sources for so long."""
    settings = teacher.TeacherSettings(seconds=seconds)
    texts = teacher.read(sources.find(6_000_000, 1_000_000).teacher)
    tokenizer = teacher.train_tokenizer(texts, settings.vocabulary)
    model, record_of_it = teacher.train(teacher.tokenize(tokenizer, texts), settings, lambda *_: None)
    teacher.keep(folder, model, tokenizer, record_of_it)
    return folder


def probabilities(targets: Targets, size: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The distributions that a reader gets, float32 [N, V]; a top-k tail is spread evenly."""
    if isinstance(targets, DenseTargets):
        return torch.softmax(torch.from_numpy(targets.logits), -1).numpy()
    if isinstance(targets, SparseTargets):
        dense = np.zeros((len(targets.offsets) - 1, size), np.float32)
        rows = np.repeat(np.arange(len(dense)), np.diff(targets.offsets))
        np.add.at(dense, (rows, targets.ids), targets.weights)
        return dense
    assert isinstance(targets, TopKTargets | TopPTargets)
    tail = np.exp(targets.tail_log_mass_at(1.0))
    if isinstance(targets, TopPTargets):
        counts = np.diff(targets.offsets)
    else:
        counts = np.full(len(tail), targets.ids.shape[1])
    dense = np.repeat((tail / np.maximum(size - counts, 1))[:, None], size, axis=1).astype(np.float32)
    dense[np.repeat(np.arange(len(tail)), counts), targets.ids.ravel()] = np.exp(targets.log_probs).ravel()
    return dense


def measure(job: LabelJob) -> tuple[dict[str, float], list[np.ndarray[Any, np.dtype[np.float32]]]]:
    """Label with a job's codec; its figures, and the decoded distributions of the first unit."""
    store = prepare(job)
    for _ in Local().run(job, store.pending(), threading.Event()):
        pass
    commits = sorted(store.commits(), key=lambda commit: commit.unit)
    targets = sum(commit.targets for commit in commits)
    weights = [commit.targets / targets for commit in commits]
    means = [commit.statistics for commit in commits]
    figures = {
        "bytes_per_target": sum(commit.shard_bytes for commit in commits) / targets,
        "entries": sum(w * m["logits.entries"] for w, m in zip(weights, means, strict=True)),
        "captured_mass": sum(w * m["logits.captured_mass"] for w, m in zip(weights, means, strict=True)),
    }
    size = store.spec.heads[0].size
    return figures, [probabilities(rows.decode("logits"), size) for rows in store.read(commits[0])]


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="a transformers directory with its tokenizer.json")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--bytes", type=int, default=300_000, help="of corpus")
    parser.add_argument("--seconds", type=float, default=60.0, help="of training, without --model")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = arguments.model or trained(folder / "teacher", arguments.seconds)
        texts = sources.find(1, arguments.bytes).labelled
        reference: list[np.ndarray[Any, np.dtype[np.float32]]] = []
        for name, codec in CODECS.items():
            job = LabelJob.model_validate(
                {
                    "corpus": {
                        "kind": "text",
                        "urls": [str(path) for path in texts.paths],
                        "unit_bytes": 100_000,
                    },
                    "views": {"kind": "token_windows", "tokenizer": str(model), "length": 256},
                    "teacher": {"kind": "causal_lm", "path": str(model), "device": "cpu"},
                    "store": {"url": str(folder / name), "heads": {"logits": codec}},
                }
            )
            figures, decoded = measure(job)
            if name == REFERENCE:
                reference = decoded
            whole, ours = np.concatenate(reference), np.concatenate(decoded)
            figures["gradient_error"] = float(np.square(ours - whole).sum(-1).mean())
            results[name] = {key: round(value, 6) for key, value in figures.items()}
            print(f"{name:16}", "  ".join(f"{key} {value:.5g}" for key, value in figures.items()), flush=True)
    flat = {f"{name}.{key}": value for name, each in results.items() for key, value in each.items()}
    record("bytes", flat | {"corpus_bytes": arguments.bytes, "threads": arguments.threads})


if __name__ == "__main__":
    main()
