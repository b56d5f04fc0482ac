"""`decant demo`: the main job on what every machine has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(demo)


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of teachers, stores, students and the report.")
    ] = Path("demo-output"),
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Students of each kind, for the spread.", show_default="three")
    ] = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="A miniature in a minute, whose figures show only that it runs.")
    ] = False,
) -> None:
    """Run the main job on what this machine has.

    On its own Python sources and on scikit-learn's digits. Trains a small teacher (once, it is kept), labels
    with two replicas on Ray, kills one in the middle, verifies the store, trains students with and without
    it, and writes one HTML report. No download; a few minutes.

    \b
      decant demo
      decant demo --output /tmp/decant-demo

    Next: open the report, then decant config example text > job.yaml
    """
    from jobs.demo import SEEDS, run_demo

    run_demo(output, seeds=seeds or SEEDS, fast=fast)
