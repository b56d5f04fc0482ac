"""Drivers of a job in processes of their own, to be stopped and killed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.job import LabelJob

LABEL = """
import sys, threading
from pipeline.engine.base import Started
from pipeline.job import LabelJob
from pipeline.targets.store import Store
job = LabelJob.model_validate_json(open(sys.argv[1]).read())
if job.label.engine == "local":
    from pipeline.engine.local import Local as Engine
else:
    from pipeline.engine.ray import RayEngine as Engine
store = Store.open(job.store.url, job.store.options)
for event in Engine().run(job, store.pending(), threading.Event()):
    if isinstance(event, Started):
        print("started", event.pid, flush=True)
"""


@contextmanager
def labelling(job: LabelJob, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The job in a process of its own, from when its first replica has started. Killed at the end."""
    path = folder / "job.json"
    path.write_text(job.model_dump_json())
    process = subprocess.Popen(
        [sys.executable, "-c", LABEL, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    process.stdout.readline()  # "started", or nothing if there was nothing to do
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
