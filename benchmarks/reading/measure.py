"""Measures readers, each in a process of its own, forked from this one when the libraries are imported.

    python -m benchmarks.reading.measure < jobs

A job is a line of JSON; so is what is found of it, on standard output: rows and seconds of whole epochs, rows
and seconds behind the first batch, seconds until it, and how far the process's memory grew.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.reading.peers import BARE, PEERS, Access

SECONDS = 1.0
"""That epochs are repeated for."""


LIBRARIES = ("student.data", "streaming", "litdata", "webdataset", "datasets")


def main() -> None:
    """Every job of standard input."""
    torch.set_num_threads(1)
    for name in LIBRARIES:  # their import is nobody's first batch
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    context = multiprocessing.get_context("fork")
    for line in sys.stdin:
        ours, theirs = context.Pipe()
        process = context.Process(target=run, args=(json.loads(line), theirs))
        process.start()
        theirs.close()
        try:
            found = ours.recv()
        except EOFError:
            found = {"error": "it ended without a result"}
        process.join()
        print(json.dumps(found), flush=True)


def run(job: dict[str, Any], answer: Connection) -> None:
    """Measures one job in this process."""
    try:
        answer.send(measured(job))
    except Exception as error:  # noqa: BLE001 - a reader that fails is a result, and the others are measured
        answer.send({"error": f"{type(error).__name__}: {error}"[:300]})
    os._exit(0)


def measured(job: dict[str, Any]) -> dict[str, Any]:
    """Epochs for SECONDS, or one from S3; or the files of a peer, written from the bare arrays."""
    if "write" in job:
        peer = next(peer for peer in PEERS if peer.name == job["reader"])
        peer.write(BARE.samples(Path(job["bare"])), Path(job["write"]))
        return {}
    if job["url"].startswith("s3://"):
        # Some of the others take these from the environment alone.
        options = job["options"]
        os.environ |= {
            "AWS_ACCESS_KEY_ID": options["key"],
            "AWS_SECRET_ACCESS_KEY": options["secret"],
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
            "S3_ENDPOINT_URL": options["endpoint_url"],
        }
    before, begun = peak(), time.perf_counter()
    rows = behind = 0
    first, reading = 0.0, 0.0
    with tempfile.TemporaryDirectory(dir=job["scratch"]) as folder:
        epochs = reader(job, Path(folder))
        while True:
            started, at = time.perf_counter(), None
            for batch in epochs:
                count = size(batch, job["batch_rows"])
                if at is None:
                    at = time.perf_counter()
                    first = first or at - begun
                else:
                    behind += count
                rows += count
            reading += time.perf_counter() - (at or started)
            seconds = time.perf_counter() - begun
            if seconds >= SECONDS or job["url"].startswith("s3://"):
                break
    return {
        "rows": rows,
        "seconds": seconds,
        "behind_first": behind,
        "behind_seconds": reading,
        "first_seconds": first,
        "grown_mb": (peak() - before) / 1e6,
    }


def size(batch: Any, batch_rows: int) -> int:
    """Rows of a batch of any reader; the others' batches are full but for an epoch's last."""
    if not isinstance(batch, dict):
        return len(batch)
    return len(batch["tokens"]) if "tokens" in batch else batch_rows


def reader(job: dict[str, Any], folder: Path) -> Iterable[Any]:
    """The job's reader: an epoch each time it is iterated."""
    if job["reader"].startswith("Decant"):
        return _Decant(job, folder)
    peer = next(peer for peer in PEERS if peer.name == job["reader"])
    return peer.read(
        Access(job["url"], folder, job["batch_rows"], job["shuffle"], job["workers"], job["options"] or {})
    )


class _Decant:
    def __init__(self, job: dict[str, Any], folder: Path) -> None:
        from student.cache import Cache
        from student.data import TargetReader

        self._number = -1
        self._reader = TargetReader(
            job["url"],
            batch_rows=job["batch_rows"],
            shuffle=job["shuffle"],
            split="all",
            options=job["options"],
            cache=Cache(job["cache"] or folder, 20 * 10**9) if "cache" in job else None,
        )

    def __iter__(self) -> Iterator[Any]:
        self._number += 1
        return self._reader.epoch(self._number)


def peak() -> int:
    """The most memory that this process has had, bytes; worker processes are not in it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
