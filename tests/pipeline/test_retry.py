"""What was quarantined for a reason that passed is labelled as if nothing had been; nothing else changes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.engine.base import Committed
from pipeline.engine.local import Local
from pipeline.job import LabelJob
from pipeline.label import Labeller
from pipeline.prepare import prepare
from pipeline.retry import PASSING, Replacements, relabel
from pipeline.targets.rows import Rows
from pipeline.targets.store import Store

MakeJob = Callable[..., LabelJob]

POISON = {
    "0005.txt": "w1 w2 w3 poison w4",
    "0011.txt": " ".join(f"w{i % 90}" for i in range(100)) + " poison " + "w1 w2 " * 50,
    "0013.txt": "",
}
"""A record of one view, one of seven views of which one fails, and an empty one."""


def label(job: LabelJob, store: Store, skip: dict[int, str] | None = None) -> None:
    labeller = Labeller(job)
    for unit in list(store.pending()):
        labeller.label(unit, skip or {})
    labeller.close()


def retry(job: LabelJob, store: Store, codes: tuple[str, ...] = PASSING) -> Replacements:
    replacements = Replacements(store, codes)
    for event in Local().run(job, replacements.units(), threading.Event(), codes):
        if isinstance(event, Committed):
            replacements.add(event.commit)
    replacements.flush()
    return replacements


def contents(store: Store) -> dict[str, Any]:
    """By unit, its rows and its quarantine."""
    found = {}
    for commit in store.commits():
        rows = list(store.read(commit))
        table = Rows.concatenate(rows).to_arrow() if rows else None
        found[commit.unit] = (table, commit.records, commit.targets, list(store.quarantined(commit)))
    return found


@pytest.fixture
def clean(make_job: MakeJob, texts: dict[str, str]) -> Store:
    """What a teacher that never failed leaves."""
    job = make_job(texts | POISON, store="clean")
    store = prepare(job)
    label(job, store)
    return store


@pytest.mark.parametrize("container", ["parquet", pytest.param("zarr", marks=pytest.mark.slow)])
def test_after_a_retry_the_store_is_what_a_teacher_that_never_failed_leaves(
    make_job: MakeJob, texts: dict[str, str], clean: Store, container: str
) -> None:
    lenient = {"max_quarantined": 1.0}
    job = make_job(texts | POISON, label=lenient)
    job = job.model_copy(update={"store": job.store.model_copy(update={"container": container})})
    failing = job.model_copy(update={"teacher": job.teacher.model_copy(update={"raise_on": 90})})
    store = prepare(failing)
    label(failing, store)
    before = {commit.unit: commit for commit in store.commits()}
    assert sum(commit.failures for commit in before.values()) == 2

    replacements = retry(job, store)
    assert (len(replacements), replacements.found, replacements.labelled) == (2, 2, 2)
    after = {commit.unit: commit for commit in store.commits()}
    assert store.verify().problems == ()
    assert sum(commit.failures for commit in after.values()) == 0
    ours, theirs = contents(store), contents(clean)
    for unit, (table, *rest) in theirs.items():
        assert ours[unit][1:] == tuple(rest)
        assert table is None or table.equals(ours[unit][0], check_metadata=False)
    changed = {unit for unit in after if after[unit].attempt != before[unit].attempt}
    assert changed == {unit for unit, commit in before.items() if commit.failures}
    for commit in clean.commits():
        for name, mean in commit.statistics.items():
            if name.endswith("entries"):
                assert after[commit.unit].statistics[name] == pytest.approx(mean, rel=1e-6)
    store.gc(0.0)
    assert store.verify().problems == ()
    assert retry(job, store).found == 0, "nothing is left to retry"


def test_records_that_killed_are_labelled_once_they_do_not(
    make_job: MakeJob, texts: dict[str, str], clean: Store
) -> None:
    job = make_job(texts | POISON, label={"max_quarantined": 1.0})
    store = prepare(job)
    label(job, store, {0: "killed the replica: no memory", 2: "killed the replica: no memory"})
    assert {q.code for commit in store.commits() for q in store.quarantined(commit)} == {"killed", "empty"}
    retry(job, store)
    assert store.verify().problems == ()
    ours, theirs = contents(store), contents(clean)
    assert {unit: values[1:] for unit, values in ours.items()} == {u: v[1:] for u, v in theirs.items()}
    for unit, (table, *_) in theirs.items():
        assert table is None or table.equals(ours[unit][0])


@pytest.mark.slow
def test_on_ray_a_record_that_still_kills_is_found_again_and_the_others_are_labelled(
    make_job: MakeJob, texts: dict[str, str], clean: Store, ray_session: None
) -> None:
    from pipeline.engine.ray import RayEngine

    label_config = {"max_quarantined": 1.0, "attempts": 2, "replicas": {"cpus": 0.5}}
    job = make_job(texts | POISON, label=label_config, teacher={"exit_on": 90})
    store = prepare(job)
    deadly = {"0005.txt", "0011.txt"}
    labeller = Labeller(job)
    for unit in list(store.pending()):
        rows = [row for row, part in enumerate(unit.slices) if part.url.rpartition("/")[2] in deadly]
        labeller.label(unit, dict.fromkeys([*rows, 0], "killed the replica: a test"))
    before = {q.key for commit in store.commits() for q in store.quarantined(commit) if q.code == "killed"}
    replacements = Replacements(store, PASSING)
    for event in RayEngine().run(job, replacements.units(), threading.Event(), PASSING):
        if isinstance(event, Committed):
            replacements.add(event.commit)
    replacements.flush()
    assert store.verify().problems == ()
    left = {q.key for commit in store.commits() for q in store.quarantined(commit) if q.code == "killed"}
    assert left == deadly < before


def test_what_fails_again_stays_and_its_unit_too(make_job: MakeJob, texts: dict[str, str]) -> None:
    job = make_job(texts | POISON, teacher={"raise_on": 90}, label={"max_quarantined": 1.0})
    store = prepare(job)
    label(job, store)
    before = {commit.unit: commit.attempt for commit in store.commits()}
    replacements = retry(job, store)
    assert (replacements.found, replacements.labelled) == (2, 0)
    assert {commit.unit: commit.attempt for commit in store.commits()} == before


def test_killed_before_its_end_a_retry_has_changed_nothing(make_job: MakeJob, texts: dict[str, str]) -> None:
    job = make_job(texts | POISON, label={"max_quarantined": 1.0})
    failing = job.model_copy(update={"teacher": job.teacher.model_copy(update={"raise_on": 90})})
    store = prepare(failing)
    label(failing, store)
    before = {commit.unit: commit.attempt for commit in store.commits()}
    labeller = Labeller(job)
    for unit in Replacements(store, PASSING).units():
        relabel(labeller, unit, PASSING)
    assert {commit.unit: commit.attempt for commit in store.commits()} == before
    assert store.verify().problems == ()
    assert sum(name.startswith("shards/") for name in store.gc(0.0)) == 2, (
        "what it had labelled belongs to nobody"
    )
    assert store.verify().problems == ()
    retry(job, store)
    assert store.verify().problems == ()


def test_a_record_that_now_fails_as_a_whole_keeps_its_labelled_views(
    make_job: MakeJob, texts: dict[str, str]
) -> None:
    job = make_job(texts | POISON, label={"max_quarantined": 1.0})
    failing = job.model_copy(update={"teacher": job.teacher.model_copy(update={"raise_on": 90})})
    store = prepare(failing)
    label(failing, store)
    labeller = Labeller(job)
    for unit in Replacements(store, PASSING).units():
        before = store.find(unit.id)
        assert before is not None
        (item,) = (q for q in store.quarantined(before) if q.code == "teacher_failed")
        assert relabel(labeller, unit, PASSING, {item.row: "killed the replica"}) == before
    assert store.verify().problems == ()
