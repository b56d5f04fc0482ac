"""`decant watch`: a job that runs on other machines, seen from its store."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer

from jobs.commands.arguments import Options, StoreUrl, open_store
from jobs.progress import Display
from jobs.terminal import err, out


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(watch)


def watch(
    store: StoreUrl,
    once: Annotated[bool, typer.Option("--once", help="Look once, print a table, and leave.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object for each look instead.")
    ] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 5.0,
    window: Annotated[
        float, typer.Option(min=1, help="Seconds of the past that rates and the time left are judged by.")
    ] = 300.0,
    option: Options = None,
) -> None:
    """Follow a labelling job from its store alone, from any machine, until its plan is complete.

    Reads the plan, the manifest and commit records, each once; asks no driver and writes nothing. Leaves with
    0 when all that is planned is committed; with --once it leaves with 1 when it is not.

    \b
      decant watch s3://bucket/targets
      decant watch job.yaml --once
      decant watch s3://bucket/targets --json --every 60 >> progress.jsonl

    Next: decant verify STORE
    """
    from jobs.watching import Watched

    opened, _ = open_store(store, option)
    watched = Watched(opened, window)
    if once or as_json:
        while True:
            watched.look(all_of_it=once)
            if as_json:
                typer.echo(json.dumps(watched.state(), ensure_ascii=False))
            else:
                out().print(watched.table())
            if once or watched.complete:
                break
            time.sleep(every)
        if not watched.complete:
            raise typer.Exit(1)
        return
    with Display(watched, err(), every):
        watched.look()
        while not watched.complete:
            time.sleep(every)
            watched.look()
    out().print(watched.table())
