"""Scale without the hardware: many replicas that sleep, and a store of a million units.

    python -m benchmarks.scale --units 1000000 --replicas 64 --scheduled 20000

Three parts, each step in a process of its own, whose peak of resident memory is the kernel's (VmHWM):

- store: a plan of a million units is written; half of them are committed, as a record each; the job is
  opened again for what is pending; the records are folded; the rest comes and is folded in too; the whole
  is opened, streamed, watched, and read by a student.
- engine: the Ray engine's own loop, ledger and events, with replicas that sleep instead of labelling. The
  sleep of a unit varies by a quarter, so that replicas do not run in step.
- the same with replicas that do nothing, for the most that the engine hands out; and with as many units in
  flight as a thousand replicas have.

Nothing here goes over a network: what requests to an object store add is counted in docs/scaling.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.memory import resident
from benchmarks.record import RESULTS, record
from benchmarks.scale_engine import schedule
from benchmarks.scale_store import STEPS


def timed(step: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """A step's figures, its seconds by the clock and of this process's CPU, and its process's peak."""
    before, begun, computed = resident("VmHWM"), time.perf_counter(), time.process_time()
    figures = step(*arguments)
    return {
        **figures,
        "seconds": round(time.perf_counter() - begun, 2),
        "cpu_seconds": round(time.process_time() - computed, 2),
        "peak_mb": resident("VmHWM") // 10**6,
        "idle_mb": before // 10**6,
    }


def apart(step: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """`timed` in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        figures = pool.submit(timed, step, *arguments).result()
    print(f"{step.__name__}: {json.dumps(figures)}", flush=True)
    return figures


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--units", type=int, default=1_000_000, help="of the plan")
    parser.add_argument("--replicas", type=int, default=64, help="that sleep")
    parser.add_argument("--scheduled", type=int, default=20_000, help="units that they sleep through")
    parser.add_argument("--seconds", type=float, default=1.0, help="that a unit sleeps on average")
    parser.add_argument("--threads", type=int, default=1, help="ignored: nothing computes")
    parser.add_argument("--only", choices=("store", "engine"), help="one part; the other's figures stay")
    parser.add_argument("--folder", type=Path, help="where the store is made (default: a temporary folder)")
    arguments = parser.parse_args()
    figures: dict[str, Mapping[str, Any]] = {}
    earlier = RESULTS / "scale.json"
    if arguments.only is not None and earlier.exists():
        figures = json.loads(earlier.read_text())["figures"]
    if arguments.only != "engine":
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            for step in STEPS:
                figures[step.__name__] = apart(step, str(Path(folder, "store")), arguments.units)
    if arguments.only != "store":
        sizes = (arguments.scheduled, arguments.replicas)
        figures["sleeping"] = apart(schedule, *sizes, arguments.seconds)
        figures["idle"] = apart(schedule, 2 * arguments.scheduled, arguments.replicas, 0.0)
        figures["thousand"] = apart(schedule, arguments.scheduled, 10, 0.0, 200)
    record("scale", figures)


if __name__ == "__main__":
    main()
