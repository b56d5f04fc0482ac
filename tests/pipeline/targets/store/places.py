"""A store looked at from outside."""

from __future__ import annotations

from typing import Any

from pipeline.targets import Store

Place = tuple[str, dict[str, Any]]


def again(store: Store, place: Place) -> Store:
    """The same store, as another process would see it."""
    return Store.open(place[0], place[1])


def names(store: Store, prefix: str) -> list[str]:
    return sorted(entry.name for entry in store.storage.list(prefix))
