"""A store of very many units, from its plan to its student: the steps that `benchmarks.scale` measures.

Each returns figures of its own beside the seconds and the peak.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.memory import resident
from benchmarks.scale_units import commit_of, units
from pipeline.targets.codecs import Threshold
from pipeline.targets.commit import Commit, commit_name
from pipeline.targets.spec import Head, Input, Spec
from pipeline.targets.store import Store

FOLDED = 50_000
"""Of the second half, how many records are written and folded at a time, as a running job does."""


def spec() -> Spec:
    """Of a store of token targets."""
    return Spec(
        inputs=(Input("tokens", "<u4", (None,)),),
        heads=(Head("logits", 150_000, "next_token", Threshold(0.02)),),
        teacher={"kind": "sleeper", "fingerprint": "0" * 32},
        views={"kind": "token_windows", "fingerprint": "0" * 32},
    )


def put(store: Store, commit: Commit) -> None:
    """A commit record, without the disk's patience: that a publication is synced is not measured here."""
    path = Path(store.url, commit_name(commit.unit))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(commit.to_json())


def plan(url: str, count: int) -> dict[str, Any]:
    """Writes the plan."""
    store = Store.create(url, spec())
    planned = store.write_plan(units(count), {"kind": "parquet"}, store.generation())
    size = sum(entry.size for entry in store.storage.list("plan/"))
    return {"units": planned, "plan_bytes": size}


def commit_half(url: str, count: int) -> dict[str, Any]:
    """Commits every other unit, as a record each: a job that was killed before it ever compacted."""
    store, fingerprint = Store.open(url), spec().fingerprint
    for number, unit in enumerate(units(count)):
        if number % 2 == 0:
            put(store, commit_of(unit.id, fingerprint))
    return {"records": count // 2}


def resume(url: str, count: int) -> dict[str, Any]:
    """Until the first pending unit is there, and until the last."""
    begun = time.perf_counter()
    pending = Store.open(url).pending()
    next(pending)
    first = time.perf_counter() - begun
    return {"first_seconds": round(first, 2), "pending": 1 + sum(1 for _ in pending)}


def compact(url: str, count: int) -> dict[str, Any]:
    """Folds all records."""
    store = Store.open(url)
    folded = store.compact()
    return {"units": folded, "manifest_bytes": max(entry.size for entry in store.storage.list("manifest/"))}


def commit_rest(url: str, count: int) -> dict[str, Any]:
    """Commits the others, and folds them as they come."""
    store, fingerprint = Store.open(url), spec().fingerprint
    spent, worst, folds = 0.0, 0.0, 0
    for number, unit in enumerate(units(count)):
        if number % 2:
            put(store, commit_of(unit.id, fingerprint))
        if (number + 1) % (2 * FOLDED) == 0 or number == count - 1:
            begun = time.perf_counter()
            store.compact()
            seconds = time.perf_counter() - begun
            spent, worst, folds = spent + seconds, max(worst, seconds), folds + 1
            store.gc(0)
    return {"folds": folds, "fold_seconds": round(spent, 2), "longest_fold_seconds": round(worst, 2)}


def open_all(url: str, count: int) -> dict[str, Any]:
    """Opens the store and knows which units it has."""
    store = Store.open(url)
    return {"shards": len(store.manifest())}


def stream_all(url: str, count: int) -> dict[str, Any]:
    """Reads every commit record of it, as objects, one after the other."""
    return {"commits": sum(1 for _ in Store.open(url).commits())}


def watch_all(url: str, count: int) -> dict[str, Any]:
    """What `decant watch` does first, and what each look costs from then on."""
    from jobs.watching import Watched

    watched = Watched(Store.open(url), 300)
    watched.look(all_of_it=True)
    begun = time.perf_counter()
    watched.look()
    return {"committed": watched.committed, "next_look_seconds": round(time.perf_counter() - begun, 4)}


def read_all(url: str, count: int) -> dict[str, Any]:
    """A student's reader, until it knows how many rows there are."""
    from student.data import TargetReader  # and torch, whose import is not the store's

    before, begun = resident("VmHWM"), time.perf_counter()
    rows = TargetReader(url, batch_rows=64, seed=0).rows
    seconds, grown = time.perf_counter() - begun, resident("VmHWM") - before
    return {"rows": rows, "opening_seconds": round(seconds, 2), "opening_mb": grown // 10**6}


STEPS: tuple[Callable[[str, int], dict[str, Any]], ...] = (
    plan,
    commit_half,
    resume,
    compact,
    commit_rest,
    open_all,
    stream_all,
    watch_all,
    read_all,
)
