"""`decant sweep`: several students from one store, a table and a plot of what came out."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from jobs.commands.arguments import JobFile, Overrides
from jobs.commands.train import corpus_records, scored
from jobs.progress import Display, Work
from jobs.terminal import count, err, out
from pipeline.targets.errors import ConfigError

if TYPE_CHECKING:
    from jobs.sweep import Result

GridFile = Annotated[
    Path,
    typer.Argument(
        metavar="GRID.yaml",
        help="Keys of the train section, each with a list of values.",
        show_default=False,
        dir_okay=False,
    ),
]

AtOnce = Annotated[
    int | None,
    typer.Option(
        "--at-once",
        min=1,
        help="Students in memory at a time; by default all that can share a pass over the data.",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(sweep)


def sweep(job: JobFile, grid: GridFile, overrides: Overrides = None, at_once: AtOnce = None) -> None:
    """Train a student for every combination of a grid, several in one pass over the store.

    The grid is a YAML file that gives keys of the train section lists of values. Each student ends with the
    weights that decant train would give it, in a directory of its own below train.output. Run it again after
    anything that stopped it, or with a larger grid, and it goes on.

    \b
      model.width: [64, 128, 256]
      loss: [{kind: hard}, {kind: auto}, {kind: auto, hard_weight: 0.5}]

    \b
      decant sweep job.yaml grid.yaml
      decant sweep job.yaml grid.yaml train.steps=5000 --at-once 4

    Next: OUTPUT/sweep.svg shows size against loss, OUTPUT/sweep.json has the numbers.
    """
    from jobs.config import load_train
    from jobs.sweep import Result, candidates, figure, passes, written

    students = candidates(job, grid, overrides or ())
    if find_spec("matplotlib") is None:
        raise ConfigError('the plot of a sweep needs matplotlib: pip install "decant-kd[sweep]"')
    # Only now: a mistake in a file is said without waiting for torch.
    from student import events
    from student.train import train_together

    records = corpus_records(job, overrides or ())
    first_rank = os.environ.get("RANK", "0") == "0"
    work = Work("trained", sum(student.config.steps for student in students), "steps")
    results: dict[str, Result] = {}
    with Display(work, err() if first_rank else None):
        for group in passes(students, at_once):
            steps, parameters = [0] * len(group), [0] * len(group)
            for number, event in train_together([student.config for student in group], records):
                student = group[number]
                work.add(event.step - steps[number])
                steps[number] = event.step
                result = Result(student.name, student.settings, parameters[number])
                match event:
                    case events.Started():
                        parameters[number] = event.parameters
                        work.before += event.step
                    case events.Evaluated():
                        work.messages.append(f"{student.name}, step {event.step}: {scored(event.score)}")
                    case events.Failed():
                        work.messages.append(f"{student.name}: {event.reason}")
                        results[student.name] = replace(result, failed=event.reason)
                    case events.Finished(score=score):
                        if score is not None:
                            result = replace(
                                result, loss=score.loss, hard_loss=score.hard_loss, accuracy=score.accuracy
                            )
                        results[student.name] = result
    if not first_rank:
        return
    ordered = [results[student.name] for student in students]
    output = Path(load_train(job, overrides or ()).output)
    (output / "sweep.json").write_text(written(ordered))
    figure(ordered).savefig(output / "sweep.svg")
    out().print(_table(ordered))
    for result in ordered:
        if result.failed is not None:
            out().print(f"{result.name} was given up: {result.failed}", soft_wrap=True, markup=False)
    out().print(f"size against loss: {output / 'sweep.svg'}", soft_wrap=True, markup=False)


def _table(results: list[Result]) -> Table:
    """The best one first."""
    table = Table(box=None, pad_edge=False)
    table.add_column("student")
    for title in ("parameters", "own loss", "loss on labels", "accuracy"):
        table.add_column(title, justify="right")
    judged = sorted(results, key=lambda r: (r.judged is None, r.judged))
    for result in judged:
        numbers = [result.loss, result.hard_loss, result.accuracy]
        shown = ["–" if number is None else f"{number:.4f}" for number in numbers]
        table.add_row(result.name, count(result.parameters), *shown)
    return table
