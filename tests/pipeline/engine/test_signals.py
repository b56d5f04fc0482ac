"""A signal reaches whoever runs the engine, and the units in flight finish, under Ray too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.job import LabelJob
from pipeline.prepare import prepare

pytestmark = pytest.mark.slow

MakeJob = Callable[..., LabelJob]

DRAIN = """
import signal, sys, threading
from pipeline.engine.base import Committed
from pipeline.job import LabelJob
from pipeline.targets.store import Store
job = LabelJob.model_validate_json(open(sys.argv[1]).read())
if job.label.engine == "local":
    from pipeline.engine.local import Local as Engine
else:
    from pipeline.engine.ray import RayEngine as Engine
stop = threading.Event()
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: threading.Thread(target=stop.set).start())
store = Store.open(job.store.url)
for event in Engine().run(job, store.pending(), stop):
    print(type(event).__name__, flush=True)
print("ended", flush=True)
"""


@pytest.mark.parametrize("engine", ["local", "ray"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_drains_and_what_was_in_flight_is_committed(
    make_job: MakeJob, tmp_path: Path, engine: str, number: signal.Signals
) -> None:
    job = make_job(teacher={"seconds_per_view": 0.05}, label={"engine": engine})
    store = prepare(job)
    path = tmp_path / "job.json"
    path.write_text(job.model_dump_json())
    process = subprocess.Popen(
        [sys.executable, "-c", DRAIN, str(path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    events: list[str] = []
    with process.stdout as lines:
        for line in lines:
            events.append(line.strip())
            if events.count("Committed") == 1 and line.startswith("Committed"):
                # Ctrl-C goes to all processes of the terminal, Ray's too; SIGTERM to the one that was asked.
                if number == signal.SIGINT:
                    os.killpg(process.pid, number)
                else:
                    process.send_signal(number)
    assert process.wait() == 0
    assert events[-1] == "ended"
    assert "ReplicaLost" not in events
    assert 2 <= events.count("Committed") < store.planned_count()
    assert len(store.committed()) == events.count("Committed")
