"""Which record of a unit kills whoever labels it: found by halving, each half tried on a replica of its own.

It knows ranges of records and whether a trial survived. Who tries them, and where, it does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

KILLERS = 8
"""Records of one unit that may be found to kill. Beyond, the records are not what is wrong."""

SEARCHES = 2
"""Searches that may end with nobody to blame: what kills by chance, or by its neighbours, is no record."""


@dataclass(frozen=True)
class Search:
    """How far the search in one unit has come.

    skip: the records found, by row, each with its reason. trial: the rows to be rehearsed next, none of them
    being to see whether reading alone kills; None: label the unit, without what is to be skipped.
    suspects: the rows of which one kills; None while it is not known how many records there are.
    """

    skip: Mapping[int, str]
    trial: range | None = range(0)
    suspects: range | None = None
    records: int = 0
    fruitless: int = 0

    def survived(self, records: int) -> Search | None:
        """The trial did not kill. records: of the unit. None: no record is to blame."""
        if self.trial is None or self.suspects is None:
            return replace(self, records=records)._among(range(records))
        left = range(self.trial.stop, self.suspects.stop)
        if left:
            return self._among(left)
        if self.fruitless + 1 < SEARCHES:
            return replace(self, fruitless=self.fruitless + 1)._among(range(self.records))
        return None

    def died(self, reason: str) -> Search | None:
        """What was tried killed. reason: how. None: no record is to blame."""
        if self.trial is None:
            return self._among(range(self.records)) if len(self.skip) < KILLERS else None
        if not self.trial:
            return None
        if len(self.trial) > 1:
            return self._among(self.trial)
        return replace(
            self, skip={**self.skip, self.trial.start: f"killed the replica: {reason}"}, trial=None
        )

    def _among(self, suspects: range) -> Search | None:
        if not suspects:
            return None
        half = max(1, len(suspects) // 2)
        return replace(self, suspects=suspects, trial=suspects[:half])


BEGIN = Search({})
