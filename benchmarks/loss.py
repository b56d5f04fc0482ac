"""A language model's loss from hidden states to gradients: fused and sparse, over hard labels, over a peer.

    python -m benchmarks.loss --threads 2 --distillkit DIR

A step is what a trainer pays behind the last block: from hidden states [N, D] and the head's matrix [V, D] to
the loss and the gradients of both. All are told of the same N tokens and run side by side, by turns:

hard: `LinearLogits` and labels alone. sparse: threshold targets; mixed: with labels in the same pass; topk:
k classes and their tail. whole: the sparse loss of logits that are made. distillkit: its own chunked sparse
KL, of the same k classes and tail, on logits that are made, as its trainer calls it.

Time is the process' CPU time, of all threads: other work on the machine disturbs it least.

Memory is what a fresh process' resident set grows by at its highest during a step (Linux' VmHWM, reset just
before), whoever allocated it, after a small step that has loaded what libraries load once. DIR holds the
package distillkit; without it the figures against it are left out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.memory import resident
from benchmarks.record import record
from student.config import LossConfig
from student.losses import LinearLogits, distillation_loss
from student.targets import TorchSparse, TorchTargets, TorchTopK

FUSED = ("hard", "sparse", "mixed", "topk")
SHAPES = {"qwen": (2048, 896, 151_936), "small": (4096, 256, 32_768)}
"""Tokens, width and classes: of Qwen2.5-0.5B's head, and of a student with a small vocabulary."""
TIMED = 8
"""A step is timed on the tokens' eighth part: ratios are alike, and rounds short."""
ENTRIES, K, CHUNK = 12, 64, 256
"""Entries of a threshold target on average, classes of a top-k target, and DistillKit's chunk_length."""

Step = Callable[[], Any]


class Material:
    """Hidden states, a head, and what a teacher said of the tokens. Reproducible."""

    def __init__(self, tokens: int, width: int, classes: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.hidden = torch.randn(tokens, width, generator=generator).requires_grad_()
        self.weight = (torch.randn(classes, width, generator=generator) * width**-0.5).requires_grad_()
        self.labels = torch.randint(classes, (tokens,), generator=generator)
        self.sparse = self._threshold(tokens, classes, generator)
        ids = torch.stack([torch.randperm(classes, generator=generator)[:K] for _ in range(64)])
        log_p = -torch.arange(1, K + 1).float().log() - 3
        self.topk = TorchTopK(
            ids[torch.arange(tokens) % 64],
            log_p.expand(tokens, K).contiguous(),
            (1.0,),
            torch.log1p(-log_p.exp().sum()).expand(tokens, 1).contiguous(),
            classes,
        )

    @staticmethod
    def _threshold(tokens: int, classes: int, generator: torch.Generator) -> TorchSparse:
        counts = torch.randint(1, 2 * ENTRIES, (tokens,), generator=generator)
        rows = torch.arange(tokens).repeat_interleave(counts)
        ids = torch.randint(classes, (len(rows),), generator=generator)
        bounds = np.concatenate([[0], np.cumsum(counts.numpy())])
        return TorchSparse(ids, 1 / counts[rows].float(), bounds, classes, np.ones(tokens, dtype=np.int64))

    def step(self, arm: str) -> Step:
        """One step of an arm."""
        match arm:
            case "hard":
                return lambda: self._ours(LossConfig(kind="hard"), None)
            case "sparse":
                return lambda: self._ours(LossConfig(), self.sparse)
            case "mixed":
                return lambda: self._ours(LossConfig(hard_weight=0.3), self.sparse)
            case "topk":
                return lambda: self._ours(LossConfig(), self.topk)
            case "whole":
                return lambda: self._ours(LossConfig(), self.sparse, fused=False)
            case _:
                return self._distillkit

    def _ours(self, config: LossConfig, targets: TorchTargets | None, fused: bool = True) -> None:
        logits = LinearLogits(self.hidden, self.weight)
        loss = distillation_loss(config, logits if fused else logits.make(), targets, self.labels)
        self._differentiate(loss)

    def _distillkit(self) -> None:
        """With the top-k targets, whose log-probabilities its codec would hand it."""
        from distillkit.lossfuncs.common import MissingProbabilityHandling  # type: ignore[import-not-found]
        from distillkit.lossfuncs.kl import sparse_kl_div  # type: ignore[import-not-found]

        logits = torch.nn.functional.linear(self.hidden, self.weight)[None]
        loss = sparse_kl_div(
            logits,
            self.topk.ids[None],
            self.topk.log_probs[None],
            missing=MissingProbabilityHandling.SYMMETRIC_UNIFORM,
            log_target=True,
            chunk_length=CHUNK,
        )
        del logits
        self._differentiate(loss / len(self.labels))

    def _differentiate(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]
        self.hidden.grad = self.weight.grad = None


def seconds(material: Material, arms: Sequence[str], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of a step, by arm: in each round all run, each time in another order."""
    steps = {arm: material.step(arm) for arm in arms}
    found: dict[str, list[float]] = {arm: [] for arm in arms}
    orders = itertools.cycle(itertools.permutations(arms))
    for number in range(rounds + 1):
        for arm in next(itertools.islice(orders, 7, None)):
            begun = time.process_time()
            steps[arm]()
            if number:  # the first touches memory and code for the first time
                found[arm].append(time.process_time() - begun)
                print(f"{arm}: {found[arm][-1]:.2f} s", file=sys.stderr, flush=True)
    return found


def highest(arm: str, shape: str) -> int:
    """Bytes that a step adds to the resident set of this process, at its highest."""
    Material(8, 16, 1024).step(arm)()
    material = Material(*SHAPES[shape])
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    material.step(arm)()
    return resident("VmHWM") - before


def memory(arm: str, shape: str, threads: int, distillkit: Path | None) -> int:
    """`highest` in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.loss",
        "--threads",
        str(threads),
        "--only",
        arm,
        "--shape",
        shape,
    ]
    command += ["--distillkit", str(distillkit)] if distillkit else []
    return int(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def measure(
    shape: str, arms: Sequence[str], rounds: int, threads: int, distillkit: Path | None
) -> dict[str, Any]:
    """Figures of a shape; ratios of times are medians of those of each round."""
    peaks = {arm: memory(arm, shape, threads, distillkit) for arm in arms}
    print(json.dumps(peaks), file=sys.stderr, flush=True)
    tokens, width, classes = SHAPES[shape]
    times = seconds(Material(tokens // TIMED, width, classes), arms, rounds)

    def times_over(arm: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(times[arm], times[other], strict=True))

    figures: dict[str, Any] = {
        "tokens_width_classes": [tokens, width, classes],
        "tokens_timed": tokens // TIMED,
        "seconds": {arm: statistics.median(found) for arm, found in times.items()},
        "peak_bytes": peaks,
        "step_time_over_hard": times_over("sparse", "hard"),
        "step_memory_over_hard": peaks["sparse"] / peaks["hard"],
        "mixed_time_over_hard": times_over("mixed", "hard"),
        "mixed_memory_over_hard": peaks["mixed"] / peaks["hard"],
        "topk_time_over_hard": times_over("topk", "hard"),
        "topk_memory_over_hard": peaks["topk"] / peaks["hard"],
        "memory_vs_whole": peaks["whole"] / peaks["sparse"],
        "time_vs_whole": times_over("whole", "sparse"),
    }
    if distillkit:
        for arm in ("sparse", "topk"):
            name = "vs_distillkit" if arm == "topk" else f"of_{arm}_vs_distillkit"
            figures[f"memory_{name}"] = peaks["distillkit"] / peaks[arm]
            figures[f"time_{name}"] = times_over("distillkit", arm)
    return figures


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--distillkit", type=Path, help="a directory that holds the package distillkit")
    parser.add_argument("--shape", choices=SHAPES, help="of one memory measurement")
    parser.add_argument("--only", help="measure the memory of one arm, here, and print its bytes")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.distillkit:
        sys.path.insert(0, str(arguments.distillkit))
    if arguments.only:
        print(highest(arguments.only, arguments.shape))
        return
    arms = (*FUSED, "whole", *(["distillkit"] if arguments.distillkit else []))
    found = {
        shape: measure(shape, arms, arguments.rounds, arguments.threads, arguments.distillkit)
        for shape in SHAPES
    }
    record("loss", {"threads": arguments.threads, **found["qwen"], "small": found["small"]})


if __name__ == "__main__":
    main()
