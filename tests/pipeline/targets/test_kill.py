"""Killed at any instant, a store holds whole units and nothing else, and the next run finishes the rest.

One test kills at every step that a local store makes durable, one by one; another with kill -9 at random.
"""

from __future__ import annotations

import functools
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.targets import Store
from pipeline.targets.containers import CONTAINERS
from pipeline.targets.convert import convert, destination

UNITS = 12


def kill_before_step(number: int) -> None:
    """SIGKILL to this process instead of its number-th call that syncs a file or changes a folder."""
    count = 0

    def counting(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return counted

    for name in ("link", "fsync", "unlink", "mkdir"):
        setattr(os, name, counting(getattr(os, name)))


def check(store: Store, acknowledged: list[str]) -> None:
    """What holds whenever nobody writes."""
    committed = [commit.unit for commit in store.commits()]
    assert len(committed) == len(set(committed))
    assert set(committed) == store.committed()
    assert set(acknowledged) <= set(committed)
    verification = store.verify()
    assert not verification.problems
    assert verification.units + verification.missing_units == store.planned_count()


def run(store: Store, kit: Any, acknowledge: Any) -> None:
    """A job: label what is pending, compact now and then, collect garbage."""
    for number, unit in enumerate(store.pending()):
        kit.label(store, unit.id)
        acknowledge(unit.id)
        if number % 3 == 0:
            store.compact()
    store.compact()
    store.gc(0)


def finished(store: Store, kit: Any) -> None:
    """After a whole run, nothing is missing and nothing is left over."""
    run(store, kit, lambda unit: None)
    check(store, [])
    assert not list(store.pending())
    files = [entry.name.split("/")[0] for entry in store.storage.list("")]
    units = store.planned_count()
    expected = {"spec.json": 1, "plan": 1, "shards": units, "quarantine": units, "manifest": 1}
    assert {name: files.count(name) for name in set(files)} == expected


@pytest.mark.slow
@pytest.mark.parametrize("container", CONTAINERS)
def test_killed_at_any_step_nothing_is_lost_or_doubled(tmp_path: Path, kit: Any) -> None:
    number, ran_through = 0, False
    while not ran_through:
        number += 1
        store = Store.create(str(tmp_path / f"{number}"), kit.text_spec())
        store.write_plan(kit.make_units(2), {"kind": "text"}, store.generation())
        log = tmp_path / f"{number}.log"
        child = os.fork()
        if child == 0:
            # Straight out, whatever happens: this process has no business in pytest.
            try:
                kill_before_step(number)
                with open(log, "w", buffering=1) as file:
                    run(store, kit, lambda unit: file.write(unit + "\n"))
                os._exit(0)
            except BaseException:  # noqa: BLE001
                os._exit(1)
        status = os.waitpid(child, 0)[1]
        ran_through = status == 0
        assert ran_through or os.WTERMSIG(status) == signal.SIGKILL
        check(store, log.read_text().split() if log.exists() else [])
        finished(store, kit)
    assert number > 30


@pytest.mark.slow
@pytest.mark.parametrize("container", ["webdataset", "zarr"])
def test_a_conversion_killed_at_any_step_is_finished_by_the_next(
    tmp_path: Path, kit: Any, container: str
) -> None:
    source = Store.create(str(tmp_path / "source"), kit.text_spec(container="parquet"))
    source.write_plan(kit.make_units(2), {"kind": "text"}, source.generation())
    for unit in source.planned():
        kit.label(source, unit.id)
    number, ran_through = 1, False
    while not ran_through:
        url = str(tmp_path / f"{number}")
        child = os.fork()
        if child == 0:
            try:
                kill_before_step(number)
                convert(source, destination(source, url, container))
                os._exit(0)
            except BaseException:  # noqa: BLE001
                os._exit(1)
        status = os.waitpid(child, 0)[1]
        ran_through = status == 0
        assert ran_through or os.WTERMSIG(status) == signal.SIGKILL
        target = destination(source, url, container)
        check(target, [])
        convert(source, target)
        check(target, [unit.id for unit in source.planned()])
        number += 3
    assert number > 20


def forked(work: Callable[[Any], None]) -> tuple[int, Any]:
    """Work in a process of its own with nothing left to import: its id, and the lines that it writes."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, os.fdopen(reading)
    try:
        with os.fdopen(writing, "w", buffering=1) as lines:
            lines.write("ready\n")
            work(lines)
    finally:
        os._exit(0)  # straight out: this process has no business in pytest


def kill_at_random(tmp_path: Path, kit: Any, kills: int) -> None:
    """Two jobs on one store at once; one or both are killed, again and again."""
    rng = random.Random(0)
    rounds = 0
    while kills > 0:
        rounds += 1
        store = Store.create(str(tmp_path / f"{rounds}"), kit.text_spec())
        store.write_plan(kit.make_units(UNITS), {"kind": "text"}, store.generation())
        acknowledged: list[str] = []
        while kills > 0 and any(True for _ in store.pending()):
            work = functools.partial(again, store, kit)
            jobs = [forked(work) for _ in range(2)]
            for _, lines in jobs:
                assert lines.readline() == "ready\n"
            for child, lines in jobs:
                time.sleep(rng.random() * 0.15)
                os.kill(child, signal.SIGKILL)
                with lines:
                    acknowledged += lines.read().split()
                os.waitpid(child, 0)
                kills -= 1
            check(store, acknowledged)
        finished(store, kit)


def again(store: Store, kit: Any, lines: Any) -> None:
    """The job, on the store as a process opens it, with a line for each unit that is committed."""
    run(Store.open(store.url), kit, lambda unit: lines.write(unit + "\n"))


def test_killed_at_random_moments_nothing_is_lost_or_doubled(tmp_path: Path, kit: Any) -> None:
    kill_at_random(tmp_path, kit, 4)


@pytest.mark.slow
@pytest.mark.parametrize(("container", "kills"), [("parquet", 100), ("webdataset", 20), ("zarr", 20)])
def test_killed_at_many_random_moments_nothing_is_lost_or_doubled(
    tmp_path: Path, kit: Any, kills: int
) -> None:
    kill_at_random(tmp_path, kit, kills)
