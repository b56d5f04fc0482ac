"""A job folds its commit records as it goes: neither its end nor its next start finds very many."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs import folding
from jobs.folding import Folding
from pipeline.engine.base import Committed
from pipeline.targets.errors import StorageError
from pipeline.targets.store import Store
from tests.pipeline.targets.conftest import label, make_units, text_spec

Decant = Callable[..., Any]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(str(tmp_path / "store"), text_spec())


def run(store: Store, count: int, said: list[str]) -> list[int]:
    """Commits so many units; after each, once nothing is being folded, how many records there are."""
    left = []
    with Folding(store, said.append) as fold:
        for unit in make_units(count):
            fold.on(Committed(label(store, unit.id), 0, 1.0))
            if fold._thread is not None:
                fold._thread.join()
            left.append(len(list(store.storage.list("commits/"))))
    return left


def test_records_are_folded_as_they_come_and_ever_more_rarely(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folding, "AT_LEAST", 2)
    said: list[str] = []
    left = run(store, 30, said)
    assert said == []
    assert max(left) <= 7
    folds = [number for number, records in enumerate(left, start=1) if records == 0]
    assert folds[:5] == [2, 4, 6, 8, 10]
    assert folds[-1] - folds[-2] > 2
    assert len(store.committed()) == 30


def test_a_compaction_that_fails_is_said_and_the_next_one_mends_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folding, "AT_LEAST", 2)
    whole, failures = Store.compact, [StorageError("the storage is full: free space")]

    def compact(self: Store) -> int:
        if failures:
            raise failures.pop()
        return whole(self)

    monkeypatch.setattr(Store, "compact", compact)
    said: list[str] = []
    assert run(store, 4, said) == [1, 2, 3, 0]
    assert said == ["the store could not be compacted for now: the storage is full: free space"]


def test_a_labelling_job_does_it(small_job: Any, decant: Decant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "AT_LEAST", 2)
    for number in range(10):
        (small_job.folder / "corpus" / f"{number:02}.txt").write_text("The owl flies at night. " * 16)
    assert decant(small_job.folder, "label", str(small_job.file)).exit_code == 0
    assert len(list((small_job.store / "manifest").iterdir())) > 1
    assert "all of it is whole" in decant(small_job.folder, "verify", "store").stdout
