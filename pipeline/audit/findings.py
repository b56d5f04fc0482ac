"""What an audit says: what was checked, and what is not true. Knows nothing of how it is found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.audit.averages import Bias
from pipeline.targets.commit import Commit
from pipeline.targets.rows import Rows
from pipeline.targets.shift import FALSE_ALARM, Shift
from pipeline.targets.spec import Head

CHECKS = {
    "spec": "what the store declares is what the job does",
    "shard": "the bytes are those that were committed",
    "inputs": "the corpus gives the same record and the same input",
    "distribution": "finite, of classes that exist, summing to one",
    "values": "what the teacher says, up to the codec's rounding",
    "place": "fits its own token best, not a neighbour's",
    "bias": "the teacher's distribution on average",
}
"""What is checked, in the order shown."""


@dataclass(frozen=True)
class Finding:
    """Something that is not true. reason: a sentence, without the place.

    unit, key, view, position: where it was seen first, as far as it has a place; head: of which targets;
    more: in how many further places of the same unit, or of the same sample if it has no unit.
    """

    check: str
    reason: str
    unit: str | None = None
    key: str | None = None
    view: int | None = None
    position: int | None = None
    head: str | None = None
    more: int = 0

    def __str__(self) -> str:
        place = [f"unit {self.unit[:12]}"] if self.unit else []
        place += [f"key {self.key!r}"] if self.key is not None else []
        place += [f"view {self.view}"] if self.view else []
        place += [f"position {self.position}"] if self.position is not None else []
        place += [f"head {self.head}"] if self.head else []
        rest = f" (and {self.more} more)" if self.more else ""
        return f"{', '.join(place)}: {self.reason}{rest}" if place else f"{self.reason}{rest}"


class Findings:
    """What was found so far, once for each check, unit and head; others of the same kind are counted.

    checked: by check, how many units, rows or targets.
    """

    def __init__(self) -> None:
        self.checked: Counter[str] = Counter(dict.fromkeys(CHECKS, 0))
        self._found: dict[tuple[str, str | None, str | None], Finding] = {}

    def __iter__(self) -> Iterator[Finding]:
        return iter(self._found.values())

    def add(self, finding: Finding) -> None:
        """Takes one."""
        kind = (finding.check, finding.unit, finding.head)
        first = self._found.get(kind)
        self._found[kind] = finding if first is None else replace(first, more=first.more + 1)

    def at(
        self, check: str, commit: Commit, row: Rows, head: Head | None, position: int | None, reason: str
    ) -> None:
        """Takes one about a single row. position: of a target; not said of a head with one target a row."""
        sequence = head is not None and head.positions == "next_token"
        self.add(
            Finding(
                check,
                reason,
                unit=commit.unit,
                key=row.keys[0],
                view=int(row.view[0]),
                position=position if sequence else None,
                head=head.name if head is not None else None,
            )
        )


@dataclass(frozen=True)
class Result:
    """What one head's targets were like. equal: those with exactly the expected values; worst: largest
    difference of a log-probability (of a logit, for dense), in nats.
    """

    head: str
    targets: int
    equal: int
    differing: int
    worst: float
    shift: Shift | None
    biases: Sequence[Bias]


@dataclass(frozen=True)
class Audit:
    """units, rows, targets: sampled; relabelled: rows that the teacher saw again. checked: by check, how many
    units, rows or targets. findings: none for a true store, but for a chance of at most `false_alarm`.
    """

    store: str
    seed: int
    units: int
    rows: int
    relabelled: int
    checked: Mapping[str, int]
    heads: Sequence[Result]
    findings: Sequence[Finding]
    false_alarm: float = FALSE_ALARM
