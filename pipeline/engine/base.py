"""What an engine is, what it tells while it runs, and what a failure of a unit means.

It knows units and their fates, and nothing of where they are labelled.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from pipeline.engine.isolation import BEGIN, Search
from pipeline.profile import Profile
from pipeline.targets.commit import Commit
from pipeline.targets.errors import (
    CorpusChanged,
    CorpusUnreadable,
    LabellingFailed,
    StorageError,
    TeacherError,
    TooManyQuarantined,
    UserError,
)
from pipeline.targets.store import Store
from pipeline.targets.unit import Unit

if TYPE_CHECKING:
    from pipeline.job import LabelJob

MINIMUM_RECORDS = 100
"""Records of a run after which their share of failures is judged; before, one bad record weighs too much."""

NAMED = 3
"""Units that a LabellingFailed names; the others it counts."""

SUSPECT = 2
"""Failed attempts after which a unit is tried without neighbours, so that it is judged by itself."""

SAMPLED = 8
"""Units with failures whose reasons are read when there are too many."""


@dataclass(frozen=True)
class ReplicaPending:
    """A replica was asked for. It stays pending until there is room for it."""

    replica: int


@dataclass(frozen=True)
class Started:
    """A replica has loaded its model. pid: its process; node: the machine's name."""

    replica: int
    pid: int
    node: str


@dataclass(frozen=True)
class ReplicaLost:
    """A replica is gone; what it had in flight is tried again elsewhere. pid: None if it never started."""

    replica: int
    pid: int | None
    reason: str


@dataclass(frozen=True)
class PreprocessorStarted:
    """A preprocessing actor renders from now on. pid: its process; node: the machine's name."""

    preprocessor: int
    pid: int
    node: str


@dataclass(frozen=True)
class PreprocessorLost:
    """One is gone; the replicas that it fed go on by themselves. pid: None if it never started."""

    preprocessor: int
    pid: int | None
    reason: str


@dataclass(frozen=True)
class Committed:
    """A unit is in the store. seconds: from handing it out to its commit. profile: what the replica's time
    was spent on since the unit before, if the job wants to know.
    """

    commit: Commit
    replica: int
    seconds: float
    profile: Profile | None = None


@dataclass(frozen=True)
class Failed:
    """An attempt at a unit failed. attempts: how many have by now; given_up: whether that was the last."""

    unit: Unit
    reason: str
    attempts: int
    given_up: bool


Event = ReplicaPending | Started | ReplicaLost | PreprocessorStarted | PreprocessorLost | Committed | Failed


class Engine(Protocol):
    """Who runs `Labeller.label`, where, and how many at a time."""

    def run(
        self, job: LabelJob, units: Iterable[Unit], stop: threading.Event, retry: Sequence[str] = ()
    ) -> Iterator[Event]:
        """Label all units, which are consumed as they are needed. The store is prepared.

        retry: codes of quarantine. Given, the units are committed, and `retry.relabel` is what is done.

        When `stop` is set, no more units are handed out, those in flight finish, and the events end. Closing
        the generator abandons those in flight. A unit that no attempt could label does not hold up others.
        Raises, with what was committed kept: TooManyQuarantined; LabellingFailed at the end, if units were
        given up; StorageError and TeacherError, when they outlast all attempts; UserError.
        """
        ...


class Preempted(Exception):
    """The replica was told to leave, and leaves this unit to others."""


@dataclass(frozen=True)
class Attempt:
    """A unit to be labelled, and how many attempts at it failed. search: for the record in it that kills."""

    unit: Unit
    failures: int = 0
    search: Search | None = None

    @property
    def skip(self) -> Mapping[int, str]:
        """Rows not to be labelled, and why."""
        return self.search.skip if self.search is not None else {}

    @property
    def trial(self) -> range | None:
        """Rows to be rehearsed; None: the unit is to be labelled."""
        return self.search.trial if self.search is not None else None


class Ledger:
    """What is still to do, and what each outcome means for it. The same for all engines; not thread-safe."""

    def __init__(self, job: LabelJob, units: Iterable[Unit]) -> None:
        self._job = job
        self._units = iter(units)
        self._again: deque[Attempt] = deque()
        self._suspects: deque[Attempt] = deque()
        self._given_up: list[tuple[Unit, str]] = []
        self._given_up_count = 0
        self._records = self._failures = 0
        self._bad: deque[Commit] = deque(maxlen=SAMPLED)

    @property
    def suspects(self) -> int:
        """Units that wait for a replica to themselves."""
        return len(self._suspects)

    @property
    def empty(self) -> bool:
        """Whether nothing is left to hand out."""
        if not self._again and not self._suspects and (unit := next(self._units, None)) is not None:
            self._again.append(Attempt(unit))
        return not self._again and not self._suspects

    def next(self) -> Attempt | None:
        """The next unit that may have neighbours; None when there is none."""
        if self._again:
            return self._again.popleft()
        unit = next(self._units, None)
        return None if unit is None else Attempt(unit)

    def next_suspect(self) -> Attempt | None:
        """The next unit that must be alone; None when there is none."""
        return self._suspects.popleft() if self._suspects else None

    def committed(self, commit: Commit) -> None:
        """Count a unit's records. Raises TooManyQuarantined."""
        self._records += commit.records
        self._failures += commit.failures
        if commit.failures:
            self._bad.append(commit)
        if self._records >= MINIMUM_RECORDS:
            self._judge()

    def returned(self, attempt: Attempt) -> None:
        """An attempt that ended through no fault of its unit."""
        self._wait(attempt)

    def failed(self, attempt: Attempt, error: Exception) -> Failed:
        """An attempt raised. Raises the error when it is not the unit's affair alone."""
        if isinstance(error, UserError | TooManyQuarantined):
            raise error
        attempt = replace(attempt, failures=attempt.failures + 1)
        last = attempt.failures >= self._job.label.attempts
        if last and isinstance(error, StorageError | TeacherError):
            raise error
        reason = sentence(error)
        if last or isinstance(error, CorpusChanged | CorpusUnreadable):
            return self._give_up(attempt, reason)
        (self._again if attempt.search is None else self._suspects).append(attempt)
        return Failed(attempt.unit, reason, attempt.failures, given_up=False)

    def crashed(self, attempt: Attempt, reason: str, alone: bool) -> Failed:
        """The replica died. alone: it had no other unit, so that none of them can be to blame.

        A unit that kills by itself time and again is searched for the record that does it.
        """
        if attempt.search is not None:
            return self._searched(attempt, attempt.search.died(reason), reason)
        attempt = replace(attempt, failures=attempt.failures + 1)
        if alone and attempt.failures >= self._job.label.attempts:
            return self._searched(attempt, BEGIN, f"{reason}; looking for the record that does it")
        self._wait(attempt)
        return Failed(attempt.unit, reason, attempt.failures, given_up=False)

    def survived(self, attempt: Attempt, records: int) -> Iterator[Failed]:
        """A rehearsal killed nobody. records: how many the unit has."""
        assert attempt.search is not None
        further = attempt.search.survived(records)
        failed = self._searched(
            attempt, further, "it killed its replicas, and none of its records does so alone"
        )
        if failed.given_up:
            yield failed

    def _searched(self, attempt: Attempt, search: Search | None, reason: str) -> Failed:
        """Go on with a search, or give the unit up where it has found nobody to blame."""
        if search is None:
            return self._give_up(attempt, reason)
        # What fails for another reason during a search has its own attempts.
        self._suspects.append(Attempt(attempt.unit, 0, search))
        return Failed(attempt.unit, reason, attempt.failures, given_up=False)

    def finish(self) -> None:
        """All is done or given up. Raises LabellingFailed, TooManyQuarantined."""
        if self._given_up:
            named = "; ".join(f"unit {unit.id[:12]} ({_files(unit)}): {why}" for unit, why in self._given_up)
            more = self._given_up_count - len(self._given_up)
            raise LabellingFailed(
                f"{self._given_up_count} units could not be labelled: {named}"
                + (f"; and {more} more" if more else "")
                + ". All others are committed: mend the cause and run the same command again"
            )
        self._judge()

    def _wait(self, attempt: Attempt) -> None:
        alone = attempt.search is not None or attempt.failures >= min(SUSPECT, self._job.label.attempts)
        (self._suspects if alone else self._again).append(attempt)

    def _give_up(self, attempt: Attempt, reason: str) -> Failed:
        self._given_up_count += 1
        if len(self._given_up) < NAMED:
            self._given_up.append((attempt.unit, reason))
        return Failed(attempt.unit, reason, attempt.failures, given_up=True)

    def _judge(self) -> None:
        allowed = self._job.label.max_quarantined
        if self._failures <= allowed * self._records:
            return
        raise TooManyQuarantined(
            f"{self._failures} failures in {self._records} records are more than label.max_quarantined "
            f"({allowed:.3%}) allows, most often: {self._commonest()}; what was committed stays: mend the "
            "cause, or allow more"
        )

    def _commonest(self) -> str:
        """The most frequent reason among the latest units with failures, and a record that has it."""
        store = Store.open(self._job.store.url, self._job.store.options)
        failures = [q for commit in self._bad for q in store.quarantined(commit) if q.code != "empty"]
        # Reasons name their record, so they are counted without it.
        kinds = Counter((q.code, q.reason.replace(q.key, "…")) for q in failures)
        code, reason = kinds.most_common(1)[0][0]
        example = next(q for q in failures if (q.code, q.reason.replace(q.key, "…")) == (code, reason))
        return f'{code}, "{example.reason}" ({example.key})'


def sentence(error: BaseException) -> str:
    """An exception on one line: a DecantError's own sentence, another's class and message."""
    from pipeline.targets.errors import DecantError

    text = " ".join(str(error).split())
    if isinstance(error, DecantError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _files(unit: Unit) -> str:
    urls = sorted({part.url for part in unit.slices})
    return urls[0] if len(urls) == 1 else f"{urls[0]} and {len(urls) - 1} more files"
