"""Nodes that know each other's address form one Ray, which a command has to itself."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.targets.store import Store

SCRIPT = Path(__file__).parents[3] / "jobs" / "cluster" / "with_ray.sh"


def started(folder: Path, nodes: int, *command: str) -> subprocess.Popen[str]:
    """Nodes in a network of their own, which has a loopback interface alone; the head's output is ours."""
    isolated = ["unshare", "--net"]
    if os.geteuid() or subprocess.run([*isolated, "true"], check=False).returncode:
        pytest.skip("a network of its own takes root")
    script = (
        'ip link set lo up; nodes=$1; shift; for ((n = 1; n < nodes; n++)); do "$0" $n 127.0.0.1 $nodes &'
    )
    script += ' done; exec "$0" 0 127.0.0.1 $nodes "$@"'
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_PORT": "6399",
        "RAY_START_OPTIONS": "--num-cpus=1 --object-store-memory=100000000",
    }
    return subprocess.Popen(
        [*isolated, "bash", "-c", script, SCRIPT, str(nodes), *command],
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.nodes
def test_two_nodes_label_together_and_end(small_job: Any) -> None:
    small_job.settings["label"] = {
        "engine": "ray",
        "address": "auto",
        "replicas": {"min": 2, "max": 2, "cpus": 1},  # one a node
    }
    run = started(small_job.folder, 2, sys.executable, "-m", "jobs.cli", "label", str(small_job.file))
    said, _ = run.communicate(timeout=280)
    assert run.returncode == 0, said
    store = Store.open(str(small_job.store))
    assert len(store.committed()) == store.planned_count() == 3


@pytest.mark.nodes
def test_a_signal_and_an_exit_code_pass_through(tmp_path: Path) -> None:
    script = tmp_path / "command.sh"
    script.write_text("trap 'sleep 0.5; touch finished; exit 7' TERM\ntouch started\nsleep 100 & wait")
    run = started(tmp_path, 1, "bash", str(script))
    until(lambda: (tmp_path / "started").exists(), run)
    run.send_signal(signal.SIGTERM)
    said, _ = run.communicate(timeout=120)
    assert run.returncode == 7, said
    assert (tmp_path / "finished").exists()


def until(happened: Callable[[], bool], run: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_without_a_shared_secret_nothing_starts() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN"}
    run = subprocess.run(
        [SCRIPT, "0", "127.0.0.1", "1", "true"], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode != 0
    assert "RAY_AUTH_TOKEN" in run.stderr
