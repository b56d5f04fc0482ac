"""What a finished store is, whatever happened on the way."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline.targets.store import Store


@pytest.fixture
def whole() -> Callable[[Store], None]:
    """Asserts that all units are committed, all shards verify, and every view is there exactly once."""

    def check(store: Store) -> None:
        verification = store.verify()
        assert verification.problems == ()
        assert verification.missing_units == 0
        for commit in store.commits():
            rows = [
                (row, view)
                for rows in store.read(commit)
                for row, view in zip(rows.row.tolist(), rows.view.tolist(), strict=True)
            ]
            lost = [(item.row, item.view) for item in store.quarantined(commit)]
            assert len(rows) == len(set(rows))
            assert not set(rows) & set(lost)
            assert {row for row, _ in [*rows, *lost]} == set(range(commit.records))

    return check
