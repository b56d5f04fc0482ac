"""Repair labels what is damaged again, and nothing else, whenever it is killed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.job import LabelJob
from pipeline.label import Labeller
from pipeline.prepare import prepare
from pipeline.repair import begun, finish
from pipeline.repair import prepare as take_out
from pipeline.targets.errors import SpecMismatch
from pipeline.targets.store import Store

MakeJob = Callable[..., LabelJob]


@pytest.fixture
def labelled(make_job: MakeJob) -> tuple[LabelJob, Store]:
    """A store of about nine units, of which the last is planned and not labelled."""
    job = make_job()
    store, labeller = prepare(job), Labeller(job)
    *units, _ = store.pending()
    for unit in units:
        labeller.label(unit)
    store.compact()
    return job, store


def damage(store: Store, number: int) -> set[str]:
    """Flips a bit in the shards of some units; their ids."""
    commits = sorted(store.commits(), key=lambda commit: commit.unit)[:number]
    for commit in commits:
        path = Path(store.url) / str(commit.shard)
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 4
        path.write_bytes(data)
    return {commit.unit for commit in commits}


def damaged(store: Store) -> set[str]:
    return {problem.unit for problem in store.verify().problems}


def attempts(store: Store) -> dict[str, tuple[str, str | None]]:
    return {commit.unit: (commit.attempt, commit.shard_sha256) for commit in store.commits()}


@pytest.mark.parametrize("killed", ["before", "noted", "taken out", "one labelled", "all labelled", "never"])
def test_killed_at_any_moment_the_next_run_ends_with_the_same_store(
    labelled: tuple[LabelJob, Store], killed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, store = labelled
    before, pending = attempts(store), {unit.id for unit in store.pending()}
    bad = damage(store, 3)
    assert damaged(store) == bad

    def run(until: str) -> None:
        if until == "before":
            return
        finish(store)
        with monkeypatch.context() as patched:
            if until == "noted":
                patched.setattr(store, "discard", lambda units: None)
            units, lost = take_out(job, store, damaged(store))
        assert lost == []
        if until in ("noted", "taken out"):
            return
        labeller = Labeller(job)
        for unit in units[: 1 if until == "one labelled" else None]:
            labeller.label(unit)
        labeller.close()
        if until == "never":
            assert finish(store) == []

    run(killed)
    run("never")
    assert damaged(store) == begun(store) == set()
    after = attempts(store)
    assert {unit for unit in after if after[unit][0] != before[unit][0]} == bad
    assert {unit: sha for unit, (_, sha) in after.items()} == {unit: sha for unit, (_, sha) in before.items()}
    assert {unit.id for unit in store.pending()} == pending


def test_a_job_that_would_label_otherwise_takes_nothing_out(
    labelled: tuple[LabelJob, Store], make_job: MakeJob
) -> None:
    _, store = labelled
    bad = damage(store, 2)
    with pytest.raises(SpecMismatch, match="repair with the job that made it"):
        take_out(make_job(teacher={"seed": 1}), store, bad)
    assert begun(store) == set()
    assert bad <= store.committed()


def test_a_unit_whose_corpus_is_gone_stays_as_it_is_and_is_named(
    labelled: tuple[LabelJob, Store], tmp_path: Path
) -> None:
    job, store = labelled
    bad = damage(store, 2)
    gone, kept = sorted(bad)
    for unit in store.planned():
        if unit.id == gone:
            Path(unit.slices[0].url).unlink()
    units, lost = take_out(job, store, bad)
    assert [unit.id for unit in units] == [kept]
    assert len(lost) == 1
    assert gone[:12] in lost[0]
    assert "vanished" in lost[0]
    assert gone in store.committed()
    assert kept not in store.committed()


def test_a_unit_that_was_labelled_and_damaged_again_is_taken_out_again(
    labelled: tuple[LabelJob, Store],
) -> None:
    job, store = labelled
    bad = damage(store, 1)
    (unit,), _ = take_out(job, store, bad)
    labeller = Labeller(job)
    labeller.label(unit)
    store.compact()
    path = Path(store.url) / str(next(c.shard for c in store.commits() if c.unit == unit.id))
    shutil.copy(next(Path(store.url).rglob("plan/*.parquet")), path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)
    assert [problem.unit for problem in finish(store)] == [unit.id]
    assert begun(store) == bad
    (again,), _ = take_out(job, store, damaged(store))
    labeller.label(again)
    assert finish(store) == []
    assert begun(store) == damaged(store) == set()
