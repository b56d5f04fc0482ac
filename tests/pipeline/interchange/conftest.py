"""A whole import in one call, and what a reader gets from the store that it made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.interchange import FORMATS, Source, importing
from pipeline.targets import Store
from pipeline.targets.codecs.base import offsets_of
from pipeline.targets.decoded import DenseTargets, SparseTargets, TopKTargets


@dataclass(frozen=True)
class Row:
    """One stored row. inputs: by name; a topk head's ids, log_probs and tail [n], or a head's logits."""

    key: str
    inputs: dict[str, Any]
    ids: Any = None
    log_probs: Any = None
    tail: Any = None
    logits: Any = None

    def probabilities(self, target: int) -> dict[int, float]:
        """Class to probability, of those that have any."""
        pairs = zip(
            self.ids[target].tolist(), np.exp(self.log_probs[target].astype(float)).tolist(), strict=True
        )
        return {name: p for name, p in pairs if p > 0}


class Imported:
    """A store that an import made, read back and verified."""

    def __init__(self, store: Store) -> None:
        self.store = store
        verified = store.verify()
        assert verified.problems == ()
        self.verified = verified
        self.rows = {row.key: row for row in self._rows()}
        self.reasons = {
            item.key: (item.code, item.reason)
            for commit in store.commits()
            for item in store.quarantined(commit)
        }

    def _rows(self) -> Iterator[Row]:
        for commit in self.store.commits():
            for part in self.store.read(commit):
                bounds = offsets_of(part.counts(part.spec.heads[0]))
                decoded = part.decode("logits")
                for i, key in enumerate(part.keys):
                    at = slice(bounds[i], bounds[i + 1])
                    inputs = {name: value[i] for name, value in part.inputs.items()}
                    if isinstance(decoded, TopKTargets):
                        tail = decoded.tail_log_mass[at, 0]
                        yield Row(key, inputs, decoded.ids[at], decoded.log_probs[at], tail)
                    elif isinstance(decoded, DenseTargets):
                        yield Row(key, inputs, logits=decoded.logits[at])
                    else:
                        assert isinstance(decoded, SparseTargets)
                        yield Row(key, inputs)


Importing = Callable[..., Imported]


def run_import(kind: str, source: Path | str, store: Path | str, **options: Any) -> Imported:
    """Import a source into a store, whole."""
    importer = FORMATS[kind].model_validate(options)
    files = Source(str(source), importer.patterns)
    opened = importing.prepare(importer, files, str(store))
    for _ in importing.run(importer, files, opened):
        pass
    return Imported(opened)


@pytest.fixture
def import_into(tmp_path: Path) -> Importing:
    """`run_import` into the test's own store."""

    def run(kind: str, source: Path | str, **options: Any) -> Imported:
        return run_import(kind, source, options.pop("store", tmp_path / "store"), **options)

    return run


@pytest.fixture(scope="session")
def import_anywhere() -> Importing:
    """`run_import`, for properties that import many times in one test."""
    return run_import
