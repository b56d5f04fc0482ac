"""Ceph's S3 server on loopback, through the script beside this file."""

from __future__ import annotations

import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CEPH = Path(__file__).parent / "ceph.sh"


def ceph_port() -> int:
    """A port that is free, as are the monitor's two, 10,000 above."""
    for port in range(9200, 9300):
        try:
            for number in (port, port + 10_000, port + 10_001):
                with socket.socket() as candidate:
                    candidate.bind(("127.0.0.1", number))
        except OSError:
            continue
        return port
    raise OSError("no port from 9200 to 9299 is free")


@dataclass(frozen=True)
class Ceph:
    """A server whose data and processes belong to a folder."""

    folder: Path
    port: int

    @property
    def options(self) -> dict[str, Any]:
        """fsspec options to reach it."""
        return {
            "endpoint_url": f"http://127.0.0.1:{self.port}",
            "key": "decant-test-key",
            "secret": "decant-test-secret",
            "client_kwargs": {"region_name": "us-east-1"},
        }

    def up(self) -> None:
        """Start it, empty."""
        self._run("up", self.folder, self.port)

    def kill(self) -> None:
        """As when the machine loses power."""
        self._run("kill", self.folder)

    def start(self) -> None:
        """Start it again on what it had."""
        self._run("start", self.folder, self.port)

    def _run(self, *words: Any) -> None:
        # Its daemons would keep a pipe open for ever.
        subprocess.run([CEPH, *map(str, words)], check=True, stdout=subprocess.DEVNULL)
