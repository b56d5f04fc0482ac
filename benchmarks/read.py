"""Reading batches of a store, against others on the same content in their own formats.

    python -m benchmarks.read --streaming-python .venv-streaming/bin/python

Four contents: rows of 128 tokens with sparse targets, rows of 16 to 4,096 tokens with such, rows of 1,000
logits, embeddings of 768 features. Every reader ends with the same torch tensors. Decant reads its store,
which is compressed and checksummed ("store"), or its decoded shards in this machine's cache, as every epoch
after the first and every other process does ("cache"); others read the decoded arrays, in the smallest dtypes
that hold them, as their users keep them. Decant reads in threads of one process; of the others the better
counts, in the process or with 2 workers, and of each the better of whole epochs and of what comes behind the
first batch. `np.frombuffer` is a bare loop over raw memory-mapped files: no checksum, no prefetching, no
keys. It is a bound, not a reader.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.reading.contents import CONTENTS, Content, samples
from benchmarks.reading.peers import BARE as bare
from benchmarks.reading.peers import PEERS
from benchmarks.record import record

STORE, CACHE, EMPTY = "Decant, store", "Decant, cache", "Decant, empty cache"
BARE = bare.name
STREAMING = "MosaicML Streaming"


class Measurer:
    """Measures jobs in processes of the environments that the readers need."""

    def __init__(self, streaming_python: str | None) -> None:
        self._pythons = {STREAMING: streaming_python}
        self._processes: dict[str, subprocess.Popen[str]] = {}

    def able(self, reader: str) -> bool:
        """Whether there is an environment for it."""
        return self._pythons.get(reader, sys.executable) is not None

    def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        python = self._pythons.get(job["reader"], sys.executable)
        assert python is not None
        if python not in self._processes:
            self._processes[python] = subprocess.Popen(
                [python, "-m", "benchmarks.reading.measure"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        process = self._processes[python]
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        for line in process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        raise RuntimeError(f"{python} -m benchmarks.reading.measure ended: see its message above")

    def close(self) -> None:
        """End the processes."""
        for process in self._processes.values():
            process.communicate()


def prepare(content: Content, folder: Path, measure: Measurer) -> dict[str, int]:
    """Everybody's files; bytes of each. Not timed. What is there stays."""
    if not (folder / "decant").exists():
        content.fill(str(folder / "decant"))
    if not (folder / BARE).exists():
        (folder / BARE).mkdir()
        bare.write(samples(str(folder / "decant")), folder / BARE)
    for peer in PEERS:
        if not (folder / peer.name).exists() and measure.able(peer.name):
            (folder / peer.name).mkdir()
            job = {"reader": peer.name, "write": str(folder / peer.name), "bare": str(folder / BARE)}
            if "error" in (found := measure(job)):
                raise RuntimeError(f"{peer.name} cannot be written: {found['error']}")
    return {path.name: _bytes(path) for path in sorted(folder.iterdir())}


def local(content: Content, folder: Path, scratch: Path, measure: Measurer) -> Iterator[dict[str, Any]]:
    """Every reader, in order and shuffled."""
    base = {"batch_rows": content.batch_rows, "scratch": str(scratch), "options": None, "workers": 0}
    cache = str(scratch / f"cache-{content.name}")
    for shuffle in (False, True):
        jobs: list[dict[str, Any]] = [{"reader": STORE, "url": str(folder / "decant")}]
        jobs += [
            {"reader": CACHE, "url": str(folder / "decant"), "cache": cache}
        ] * 2  # the first one fills it
        for peer in PEERS:
            if measure.able(peer.name):
                for workers in (0, 2) if peer.workers else (0,):
                    jobs.append({"reader": peer.name, "url": str(folder / peer.name), "workers": workers})
        for number, job in enumerate(jobs):
            found = measure({**base, **job, "shuffle": shuffle})
            if number != 1:
                yield {**job, "shuffle": shuffle, "content": content.name, "where": "local", **found}


def remote(content: Content, folder: Path, scratch: Path, measure: Measurer) -> Iterator[dict[str, Any]]:
    """The same from Ceph's S3 server on loopback, into empty caches."""
    import fsspec

    with served(scratch / "ceph") as options:
        files = fsspec.filesystem("s3", **options)
        files.call_s3("create_bucket", Bucket="benchmark")
        base = {"batch_rows": content.batch_rows, "scratch": str(scratch), "options": options, "workers": 0}
        jobs: list[dict[str, Any]] = [
            {"reader": STORE, "url": "s3://benchmark/decant"},
            {"reader": EMPTY, "url": "s3://benchmark/decant", "cache": None},
        ]
        files.put(str(folder / "decant"), "benchmark/decant", recursive=True)
        for number, peer in enumerate(PEERS):
            if peer.remote and measure.able(peer.name):
                files.put(str(folder / peer.name), f"benchmark/{number}", recursive=True)
                url = f"s3://benchmark/{number}"
                jobs += [{"reader": peer.name, "url": url, "workers": workers} for workers in (0, 2)]
        for shuffle in (False, True):
            for job in jobs:
                found = measure({**base, **job, "shuffle": shuffle})
                yield {**job, "shuffle": shuffle, "content": content.name, "where": "s3", **found}


@contextlib.contextmanager
def served(folder: Path) -> Iterator[dict[str, Any]]:
    """fsspec options of an S3 server that runs meanwhile."""
    from tests.s3.ceph import Ceph, ceph_port

    folder.mkdir()
    server = Ceph(folder, ceph_port())
    server.up()
    try:
        yield server.options
    finally:
        server.kill()


def rate(found: dict[str, Any]) -> float:
    """Rows per second; of others the better of whole epochs and of what comes behind the first batch."""
    if "error" in found:
        return 0.0
    whole = found["rows"] / found["seconds"]
    if found["reader"].startswith("Decant") or not found["behind_first"]:
        return float(whole)
    return float(max(whole, found["behind_first"] / found["behind_seconds"]))


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Ratios of each content, order and place, and the least of them."""
    peers = {peer.name for peer in PEERS} - {BARE}
    groups: dict[tuple[str, str, bool], list[dict[str, Any]]] = {}
    for found in results:
        groups.setdefault((found["where"], found["content"], found["shuffle"]), []).append(found)
    ratios: dict[str, Any] = {}
    for (where, content, shuffle), group in groups.items():
        best = {
            name: max((rate(f) for f in group if f["reader"] == name), default=0.0)
            for name in {f["reader"] for f in group}
        }
        others = max(best.get(name, 0.0) for name in peers)
        for mode in (STORE, CACHE, EMPTY):
            if best.get(mode):
                key = (
                    f"{where}, {content}, {'shuffled' if shuffle else 'in order'}, {mode.partition(', ')[2]}"
                )
                ratios[key] = {"over_best_peer": round(best[mode] / others, 2) if others else None}
                if best.get(BARE):
                    ratios[key]["over_bare"] = round(best[mode] / best[BARE], 2)

    def least(name: str, part: str) -> float | None:
        return min(
            (r[name] for key, r in ratios.items() if part in key and r.get(name) is not None), default=None
        )

    def fixed_least(name: str) -> float | None:
        mine = [r for key, r in ratios.items() if f", {name}, " in key and key.endswith(", cache")]
        return min((r["over_best_peer"] for r in mine if r["over_best_peer"] is not None), default=None)

    fixed = [c.name for c in CONTENTS.values() if c.fixed]
    return {
        "over_best_peer_min": least("over_best_peer", "cache"),
        "over_best_peer_fixed_min": min(
            (value for name in fixed if (value := fixed_least(name)) is not None),
            default=None,
        ),
        "over_bare_min": least("over_bare", ", cache"),
        "store_over_best_peer_min": least("over_best_peer", ", store"),
        "store_over_bare_min": least("over_bare", ", store"),
        "ratios": ratios,
    }


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1, help="ignored: nothing computes")
    parser.add_argument("--contents", nargs="+", default=list(CONTENTS), choices=list(CONTENTS))
    parser.add_argument("--streaming-python", help="interpreter of an environment with MosaicML Streaming")
    parser.add_argument("--s3", action="store_true", help="from Ceph's S3 server on loopback, and only that")
    parser.add_argument(
        "--only-prepare", action="store_true", help="write everybody's files, measure nothing"
    )
    parser.add_argument(
        "--folder", type=Path, help="where files are made and left (default: a temporary folder)"
    )
    arguments = parser.parse_args()
    measure, results, sizes = Measurer(arguments.streaming_python), [], {}
    with tempfile.TemporaryDirectory() as temporary:
        folder, scratch = arguments.folder or Path(temporary), Path(temporary)
        for name in arguments.contents:
            content = CONTENTS[name]
            (folder / name).mkdir(parents=True, exist_ok=True)
            sizes[name] = prepare(content, folder / name, measure)
            if arguments.only_prepare:
                continue
            measured = remote if arguments.s3 else local
            for found in measured(content, folder / name, scratch, measure):
                results.append(found)
                size = sizes[name]["decant" if found["reader"].startswith("Decant") else found["reader"]]
                found["rows_per_second"] = round(rate(found))
                found["stored_mb_per_second"] = round(rate(found) * size / content.rows / 1e6, 1)
                shown = ("content", "where", "reader", "shuffle", "workers", "rows_per_second", "error")
                print(*(found[key] for key in shown if key in found), flush=True)
    measure.close()
    if not arguments.only_prepare:
        record(
            "read-s3" if arguments.s3 else "read",
            {**summary(results), "bytes": sizes, "results": [_short(found) for found in results]},
        )


def _short(found: dict[str, Any]) -> dict[str, Any]:
    """What is recorded. Of an error its kind: the rest tells of this machine's folders."""
    left_out = ("url", "cache", "rows", "seconds", "behind_first", "behind_seconds")
    short = {
        key: round(value, 3) if isinstance(value, float) else value
        for key, value in found.items()
        if key not in left_out
    }
    return short if "error" not in short else {**short, "error": short["error"].partition(":")[0]}


if __name__ == "__main__":
    main()
