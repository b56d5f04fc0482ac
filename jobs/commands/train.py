"""`decant train`: a student from a store, with its progress."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from jobs.commands.arguments import JobFile, Overrides
from jobs.progress import Display
from jobs.terminal import bar, count, duration, err, out
from pipeline.targets.errors import ConfigError

if TYPE_CHECKING:
    from student import events
    from student.replay import Records


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(train)


class TrainView:
    """The state of a training run, as lines."""

    note = ""

    def __init__(self, title: str, steps: int) -> None:
        self.title, self.steps, self.first, self.step = title, steps, 0, 0
        self.messages: list[str] = []
        self.facts: list[tuple[str, str]] = []
        self.began = time.monotonic()

    def on(self, event: events.Event) -> None:
        """Takes one event of the trainer."""
        from student import events

        match event:
            case events.Started():
                self.first = self.step = event.step
                self.began = time.monotonic()
                self.messages.append(
                    f"{count(event.parameters)} parameters on {event.device}, {event.ranks} "
                    f"rank{'s' if event.ranks > 1 else ''}, {count(event.rows)} rows an epoch, "
                    f"{count(event.held_out)} held out"
                    + (f"; goes on after step {count(event.step)}" if event.step else "")
                )
            case events.Checked():
                fit = ""
                if event.own is not None:
                    fit = (
                        f"; mean log-likelihood of the real tokens {event.own:.2f} nats, of the ones before "
                        f"{event.before:.2f} and after {event.after:.2f}"
                    )
                self.messages.append(
                    f"the store looks sound: {count(event.rows)} rows of {count(event.shards)} shards{fit}"
                )
            case events.Step():
                self.step = event.step
                self.facts = [
                    ("loss", f"{event.loss:.4f}"),
                    ("learning rate", f"{event.learning_rate:.2e}"),
                    ("gradient norm", f"{event.gradient_norm:.3g}"),
                    ("epoch", f"{event.epoch:.2f}"),
                    ("targets/s", f"{event.targets_per_second:,.0f}"),
                    ("FLOP/s", f"{count(event.flops_per_second)} ({event.utilisation:.0%} of the peak)"),
                ]
            case events.Evaluated():
                self.messages.append(f"step {count(event.step)}: {scored(event.score)}")

    def seconds_left(self) -> float | None:
        """At the mean pace of this run; None before its first report."""
        done = self.step - self.first
        return (time.monotonic() - self.began) / done * (self.steps - self.step) if done else None

    def line(self) -> str:
        """All of it in one plain line."""
        facts = [("step", f"{count(self.step)} of {count(self.steps)}"), *self.facts]
        facts.append(("left", duration(self.seconds_left())))
        return ", ".join(f"{name} {value}" for name, value in facts)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(f"{self.title}  {duration(time.monotonic() - self.began)}", style="bold")
        yield bar(self.step, self.steps, options.max_width)
        yield Text(self.line(), overflow="fold")
        for message in self.messages[-6:]:
            yield Text(message, style="dim", overflow="ellipsis", no_wrap=True)


def scored(score: events.Score) -> str:
    """An evaluation in a line."""
    return ", ".join(
        f"{name.replace('_', ' ')} {value:.4f}" if isinstance(value, float) else f"{name} {count(value)}"
        for name, value in vars(score).items()
        if value is not None
    )


RayWorkers = Annotated[
    int | None,
    typer.Option(
        "--ray-workers",
        min=1,
        help="Train by Ray Train on that many workers, which are started again when one is lost.",
        show_default=False,
    ),
]

RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        help='A running Ray cluster ("auto", "ray://…"); by default Ray starts on this machine.',
        show_default=False,
    ),
]


def train(
    job: JobFile,
    overrides: Overrides = None,
    ray_workers: RayWorkers = None,
    ray_address: RayAddress = None,
) -> None:
    """Train a student from the store.

    Needs neither corpus nor teacher: the job file may hold a train section alone, with its store's url. Only
    a store of images or audio that was labelled with store.inputs: omit needs the job's corpus. Run it again
    after anything that stopped it, and it goes on from the last checkpoint, with the weights it would have
    had. Under torchrun every rank runs it, and the first one reports.

    \b
      decant train job.yaml
      decant train job.yaml train.steps=5000 train.loss.hard_weight=0.3
      torchrun --nproc-per-node 4 -m jobs.cli train job.yaml
      decant train job.yaml --ray-workers 4 --ray-address auto

    Next: the weights are OUTPUT/checkpoints/best/model.safetensors; a transformers student's directory is
    one that from_pretrained reads, and `decant sweep` trains students of several sizes.
    """
    from jobs.config import load_train

    config = load_train(job, overrides or ())
    # Only now: a mistake in the job file is said without waiting for torch.
    from jobs.ray_train import train_on_ray
    from student import events
    from student import train as trainer

    assert config.store is not None
    records = corpus_records(job, overrides or ())
    if ray_workers is None:
        happening = trainer.train(config, records)
    elif records is None:
        happening = train_on_ray(config, ray_workers, ray_address)
    else:
        raise ConfigError("--ray-workers: the store keeps no inputs; label with store.inputs: embed")
    view = TrainView(f"training from {config.store.url}", config.steps)
    finished: events.Finished | None = None
    with Display(view, err() if os.environ.get("RANK", "0") == "0" else None):
        for event in happening:
            view.on(event)
            if isinstance(event, events.Finished):
                finished = event
    if finished is not None:
        score = f": {scored(finished.score)}" if finished.score else ""
        out().print(f"trained {count(finished.step)} steps{score}", soft_wrap=True, markup=False)
        out().print(f"weights: {finished.checkpoint}", soft_wrap=True, markup=False)


def corpus_records(path: Path, overrides: Sequence[str]) -> Records | None:
    """How the corpus of a job file is read, if the file has one and the student's store needs it."""
    from jobs.config import load_job, sections
    from jobs.replay import CorpusRecords
    from pipeline.targets.replay import needs_replay
    from pipeline.targets.store import Store

    if "corpus" not in sections(path, overrides):
        return None
    job = load_job(path, overrides)
    assert job.train is not None
    assert job.train.store is not None
    store = Store.open(job.train.store.url, job.train.store.options)
    return CorpusRecords(store, job.corpus) if needs_replay(store.spec) else None
