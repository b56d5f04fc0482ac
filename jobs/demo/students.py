"""The text leg's students: pairs that differ in one thing only, what they are told about the same tokens.

The two of a pair train side by side, each in a process of its own with one thread: at this size a second
thread would gain little.
"""

from __future__ import annotations

import multiprocessing
import queue
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from rich.table import Table

from jobs.demo.results import CurvePoint, StudentRun
from jobs.demo.stages import Stages, StepView, plural
from jobs.terminal import count
from pipeline.targets.errors import DecantError
from student import events as training
from student.config import LossConfig, TrainConfig

if TYPE_CHECKING:
    Told = multiprocessing.Queue["_News"]

TOKENS, STORE = "tokens", "store"
"""The two students, by what they are told."""


def students(config: TrainConfig, stages: Stages, seeds: int, val_nll: float) -> tuple[list[StudentRun], int]:
    """All students' runs, and how many weights each has. Raises DecantError when one cannot be trained."""
    with stages.stage(
        f"Train {plural(seeds, 'pair')} of students",
        f"The same net, initial weights, batches, order, learning rate and {config.steps} steps. One is told "
        "the token that came next, the other what the store says of it. Both are judged by the tokens that "
        f"really came next in {config.holdout:.0%} of the shards, which neither has seen.",
    ):
        plans = {name: [_configured(config, name, seed) for seed in range(seeds)] for name in (TOKENS, STORE)}
        logs = {(name, seed): _Log() for seed in range(seeds) for name in plans}
        view = StepView("students", 2 * seeds * config.steps)
        with stages.display(view):
            for news in _side_by_side(plans):
                logs[news.name, news.seed].on(news)
                done = sum(log.step for log in logs.values())
                view.move(done, f"{news.name}, seed {news.seed}: {logs[news.name, news.seed].fact}")
        runs = [
            StudentRun(name=name, seed=seed, curve=log.curve, seconds=log.seconds)
            for (name, seed), log in logs.items()
        ]
        parameters = max(log.parameters for log in logs.values())
        stages.table(_outcome(runs, val_nll, parameters))
    return runs, parameters


def _configured(config: TrainConfig, name: str, seed: int) -> TrainConfig:
    """One student, in a fresh directory beside the configured one."""
    output = Path(config.output).with_name(f"{name}-{seed}")
    if output.exists():
        shutil.rmtree(output)
    loss = LossConfig(kind="hard" if name == TOKENS else "sparse_cross_entropy")
    return config.model_copy(update={"output": str(output), "loss": loss, "seed": seed})


@dataclass(frozen=True)
class _News:
    """What a process tells. at: its clock, seconds; event: None with an error or at the end of all."""

    name: str
    seed: int
    at: float
    event: training.Event | None
    error: str | None = None


@dataclass
class _Log:
    """What is known of one student. seconds: of its training, evaluations left out."""

    step: int = 0
    parameters: int = 0
    seconds: float = 0.0
    fact: str = "starting"
    curve: list[CurvePoint] = field(default_factory=list)
    _before: float = 0.0

    def on(self, news: _News) -> None:
        match news.event:
            case training.Started():
                self.parameters = news.event.parameters
            case training.Step():
                self.seconds += news.at - self._before
                self.step = news.event.step
                self.fact = f"loss {news.event.loss:.3f}, {news.event.targets_per_second:,.0f} tokens/s"
            case training.Evaluated(score=score) if score.hard_loss is not None:
                self.curve.append(CurvePoint(step=news.event.step, val_nll=score.hard_loss))
                self.fact = f"{score.hard_loss:.3f} nats per held-out token"
        self._before = news.at


def _side_by_side(plans: dict[str, list[TrainConfig]]) -> Iterator[_News]:
    """What happens in one process for each plan, as it happens. Raises DecantError for the first failure."""
    context = multiprocessing.get_context("spawn")
    told: Told = context.Queue()
    processes = {
        name: context.Process(target=_work, args=(name, configs, told), name=f"decant-students-{name}")
        for name, configs in plans.items()
    }
    with _running(list(processes.values())):
        working = set(processes)
        while working:
            try:
                news = told.get(timeout=1.0)
            except queue.Empty:
                dead = [name for name in working if processes[name].exitcode not in (None, 0)]
                if dead:
                    code = processes[dead[0]].exitcode
                    raise DecantError(
                        f"the process that trained from the {dead[0]} ended with code {code}"
                    ) from None
                continue
            if news.error is not None:
                raise DecantError(news.error)
            if news.event is None:
                working.remove(news.name)
            else:
                yield news


@contextmanager
def _running(processes: Sequence[BaseProcess]) -> Iterator[None]:
    """While entered they run; none outlives it."""
    for process in processes:
        process.start()
    try:
        yield
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _work(name: str, configs: Sequence[TrainConfig], told: Told) -> None:
    """What a process does: one student after the other."""
    import torch

    from student.train import train

    torch.set_num_threads(1)
    seed = 0
    try:
        for config in configs:
            seed = config.seed
            for event in train(config):
                told.put(_News(name, seed, time.monotonic(), event))
    except Exception as error:
        told.put(_News(name, seed, time.monotonic(), None, f"{type(error).__name__}: {error}"))
        raise
    told.put(_News(name, seed, time.monotonic(), None))


def _outcome(runs: list[StudentRun], val_nll: float, parameters: int) -> Table:
    """Validation losses of all students beside the teacher's."""
    seeds = sorted({run.seed for run in runs})
    finals = {name: [run.final for run in runs if run.name == name] for name in (TOKENS, STORE)}
    gains = [a - b for a, b in zip(finals[TOKENS], finals[STORE], strict=True)]
    several = len(seeds) > 1

    def with_mean(values: list[float]) -> list[float]:
        return [*values, fmean(values)] if several else values

    table = Table(
        box=None,
        padding=(0, 2),
        title="validation loss, nats per token",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("", style="dim")
    for heading in [f"seed {seed}" for seed in seeds] + ["mean"] * several:
        table.add_column(heading, justify="right")
    what = f"student, {count(parameters)} parameters"
    table.add_row(f"{what}, from the tokens alone", *(f"{x:.3f}" for x in with_mean(finals[TOKENS])))
    table.add_row(f"{what}, from the store", *(f"{x:.3f}" for x in with_mean(finals[STORE])))
    table.add_row(
        "  the store's gain",
        *(f"[bold {'green' if gain > 0 else 'red'}]{gain:+.3f}[/]" for gain in with_mean(gains)),
    )
    table.add_row("teacher, on the same tokens", *[""] * (len(with_mean(gains)) - 1), f"{val_nll:.3f}")
    return table
