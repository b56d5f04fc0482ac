"""The demo: the main job on an embedded default, in two legs, with a report.

`run_demo` is all that others need. Torch and the models are imported when it is called, not with the module.
"""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from jobs.demo.results import DemoResults, Machine

SEEDS = 3
"""Students of each kind, unless asked for more or fewer."""


def run_demo(output: Path, *, seeds: int = SEEDS, fast: bool = False) -> DemoResults:
    """Both legs in `output`, results.json and report.html there, and the story of it on standard output.

    seeds: students of each kind and leg. fast: a miniature of everything, in a minute, whose figures show
    nothing but that it runs. A teacher that an earlier run kept in `output` is used again.
    """
    from jobs.demo.stages import Stages
    from jobs.terminal import out

    output.mkdir(parents=True, exist_ok=True)
    stages = Stages(out())
    stages.open(output)
    from transformers.utils import logging

    from jobs.demo.digits.leg import run_digits
    from jobs.demo.digits.settings import DigitsSettings
    from jobs.demo.digits.table import digits_table
    from jobs.demo.settings import TextSettings, miniature
    from jobs.demo.text import run_text
    from jobs.report.page import write_report
    from pipeline.engine.ray import RayEngine

    logging.disable_progress_bar()
    logging.set_verbosity_error()

    stages.part("A language model teaches another through a store")
    text = run_text(output / "text", stages, RayEngine(), seeds, miniature() if fast else TextSettings())

    stages.part("An ensemble teaches a shallow net")
    small = DigitsSettings(member_steps=20, transfer_digits=1200, student_steps=20, seeds=seeds)
    with stages.stage("Handwritten digits"):
        digits = run_digits(
            output / "digits", small if fast else DigitsSettings(seeds=seeds), lambda line: stages.say(line)
        )
        stages.table(digits_table(digits))

    results = DemoResults(
        version=version("decant-kd"),
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=_machine(),
        seconds=stages.seconds,
        text=text,
        digits=digits,
    )
    results.write(output / "results.json")
    stages.close(output, write_report(results, output / "report.html"))
    return results


def _machine() -> Machine:
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return Machine(
        cpus=len(affinity(0)) if affinity else os.cpu_count() or 1,
        python=platform.python_version(),
        torch=version("torch"),
        ray=version("ray"),
        platform=f"{platform.system()} {platform.machine()}",
    )
