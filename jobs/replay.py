"""How a student reads the corpus: the records of a unit of the store's plan.

It knows plans and sources; students know neither. What becomes of a record, `student.replay` knows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

from pipeline.corpus.base import Record, Source
from pipeline.targets.errors import SpecMismatch
from pipeline.targets.store import Store


class CorpusRecords:
    """The `student.replay.Records` of a store and its corpus. Several threads may call it.

    It holds no unit: it finds each in the plan by its id (`targets.generations.Lookup`).
    """

    def __init__(self, store: Store, corpus: Source) -> None:
        self._url, self._planned, self._corpus = store.url, store.lookup(), corpus

    def __call__(self, unit: str) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
        """Ordinal, key and data of each record that can be read, in order.

        Raises SpecMismatch for a unit that is in no plan of the store, and what `Source.read` raises.
        """
        planned = self._planned.find(unit)
        if planned is None:
            raise SpecMismatch(f"{self._url} has the unit {unit} in no plan: its corpus is not known")
        with closing(self._corpus.read(planned)) as records:
            for record in records:
                if isinstance(record, Record):
                    yield record.row, record.key, record.data
