"""`decant config`: job files explained, checked and resolved."""

from __future__ import annotations

import json
from enum import StrEnum
from importlib.resources import files
from typing import Annotated

import typer

from jobs.commands.arguments import JobFile, Overrides


class Example(StrEnum):
    """The example job files."""

    text = "text"
    images = "images"
    audio = "audio"
    captions = "captions"
    arrays = "arrays"
    s3 = "s3"


config = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Explain, check and show job files.")


def register(app: typer.Typer) -> None:
    """Adds the group of commands."""
    app.add_typer(config, name="config")


@config.command()
def example(
    name: Annotated[Example, typer.Argument(help="Which one.", show_default=True)] = Example.text,
) -> None:
    """Print a job file in which every line is explained.

    \b
      decant config example text > job.yaml       text files, a causal language model, a small student
      decant config example images > job.yaml     a folder of images, crops and mixup, a small CNN
      decant config example audio > job.yaml      a folder of recordings, log-mel windows, a small CNN
      decant config example captions > job.yaml   images with texts, a model of both, a small language model
      decant config example arrays > job.yaml     arrays, an ensemble of classifiers, a shallow student
      decant config example s3 > job.yaml         corpus and store on S3, many GPUs on a Ray cluster

    Next: edit it, then decant config check job.yaml
    """
    typer.echo(files("jobs").joinpath("examples", f"{name.value}.yaml").read_text("utf-8"), nl=False)


@config.command()
def schema() -> None:
    """Print the JSON schema of a job file: every key, its type, its default and its meaning.

    Editors check and complete a job file by it, when its first line is

    \b
      # yaml-language-server: $schema=job.schema.json
    """
    from jobs.config import Job

    typer.echo(json.dumps(Job.model_json_schema(), indent=2, ensure_ascii=False))


@config.command()
def show(job: JobFile, overrides: Overrides = None) -> None:
    """Print the job as it is understood: overrides put in, defaults spelled out, credentials hidden.

    \b
      decant config show job.yaml train.steps=100
    """
    from jobs.config import load_job, load_train, sections, shown

    if sections(job, overrides or ()) == {"train"}:
        typer.echo("train:")
        text = shown(load_train(job, overrides or ()))
        typer.echo("".join(f"  {line}\n" for line in text.splitlines()), nl=False)
    else:
        typer.echo(shown(load_job(job, overrides or ())), nl=False)


@config.command()
def check(job: JobFile, overrides: Overrides = None) -> None:
    """Say whether the job file can be understood, and leave with code 2 if it cannot.

    Looks at keys and values only: no corpus, model or store is opened. decant plan does that.
    """
    from jobs.config import load_job, load_train, sections

    if sections(job, overrides or ()) == {"train"}:
        load_train(job, overrides or ())
        typer.echo(f"{job}: a training job. Next: decant train {job}")
        return
    loaded = load_job(job, overrides or ())
    student = ", and trains a student" if loaded.train is not None else ""
    typer.echo(
        f"{job}: labels {loaded.corpus.kind} with {loaded.teacher.kind} into {loaded.store.url}{student}. "
        f"Next: decant plan {job}"
    )
