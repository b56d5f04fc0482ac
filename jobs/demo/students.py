"""The text leg's students: pairs that differ in one thing only, what they are told about the same tokens."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from statistics import fmean

from rich.table import Table

from jobs.demo.results import CurvePoint, StudentRun
from jobs.demo.stages import Stages, StepView, plural
from jobs.terminal import count
from student import events as training
from student.config import LossConfig, TrainConfig
from student.train import train

TOKENS, STORE = "tokens", "store"
"""The two students, by what they are told."""


def students(config: TrainConfig, stages: Stages, seeds: int, val_nll: float) -> tuple[list[StudentRun], int]:
    """All students' runs, and how many weights each has."""
    runs: list[StudentRun] = []
    parameters = 0
    with stages.stage(
        f"Train {plural(seeds, 'pair')} of students",
        f"The same net, initial weights, batches, order, learning rate and {config.steps} steps. One is told "
        "the token that came next, the other what the store says of it. Both are judged by the tokens that "
        f"really came next in {config.holdout:.0%} of the shards, which neither has seen.",
    ):
        for seed in range(seeds):
            for name in (TOKENS, STORE):
                run, parameters = _student(config, name, seed, stages)
                runs.append(run)
        stages.table(_outcome(runs, val_nll, parameters))
    return runs, parameters


def _student(config: TrainConfig, name: str, seed: int, stages: Stages) -> tuple[StudentRun, int]:
    output = Path(config.output).with_name(f"{name}-{seed}")
    if output.exists():
        shutil.rmtree(output)
    loss = LossConfig(kind="hard" if name == TOKENS else "sparse_cross_entropy")
    own = config.model_copy(update={"output": str(output), "loss": loss, "seed": seed})
    view = StepView(f"seed {seed}, from the {name}", config.steps)
    curve: list[CurvePoint] = []
    parameters, seconds, before = 0, 0.0, time.monotonic()
    with stages.display(view):
        for event in train(own):
            now = time.monotonic()
            match event:
                case training.Started():
                    parameters = event.parameters
                case training.Step():
                    seconds += now - before
                    view.move(event.step, f"loss {event.loss:.3f}, {event.targets_per_second:,.0f} tokens/s")
                case training.Evaluated(score=score) if score.hard_loss is not None:
                    curve.append(CurvePoint(step=event.step, val_nll=score.hard_loss))
            before = now
    return StudentRun(name=name, seed=seed, curve=curve, seconds=seconds), parameters


def _outcome(runs: list[StudentRun], val_nll: float, parameters: int) -> Table:
    """Validation losses of all students beside the teacher's."""
    seeds = sorted({run.seed for run in runs})
    finals = {name: [run.final for run in runs if run.name == name] for name in (TOKENS, STORE)}
    table = Table(
        box=None,
        padding=(0, 2),
        title="validation loss, nats per token",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("", style="dim")
    for seed in seeds:
        table.add_column(f"seed {seed}", justify="right")
    if len(seeds) > 1:
        table.add_column("mean", justify="right")
    each = [""] * (len(seeds) - 1) + ([""] if len(seeds) > 1 else [])
    what = f"student, {count(parameters)} parameters"
    for label, name in ((f"{what}, from tokens alone", TOKENS), (f"{what}, from the store", STORE)):
        values = finals[name] + ([fmean(finals[name])] if len(seeds) > 1 else [])
        table.add_row(label, *(f"{value:.3f}" for value in values))
    gains = [a - b for a, b in zip(finals[TOKENS], finals[STORE], strict=True)]
    values = gains + ([fmean(gains)] if len(seeds) > 1 else [])
    table.add_row(
        "the store's gain", *(f"[bold {'green' if gain > 0 else 'red'}]{gain:+.3f}[/]" for gain in values)
    )
    table.add_row("teacher", *each, f"{val_nll:.3f}")
    return table
