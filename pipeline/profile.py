"""Where the time of labelling goes: how long each stage works, second by second, and what it waits for.

It knows stages by name and the clock, and nothing of what they do. A stage that waits for the one before it
is starved, one that waits for room behind it is blocked; the one that does neither is what limits the others.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TypeVar

K = TypeVar("K")

STAGES = ("read", "views", "receive", "batch", "teacher", "encode", "write")
"""In the order in which a record passes them. "receive" is there where other processes read and render, which
are then what "read" and "views" tell of; "teacher" is the forward pass on its device; "encode" makes targets
of it, and computes the head of a language model for that."""


@dataclass
class Profile:
    """Seconds by stage, of one replica or several. working: by second of the wall clock too."""

    working: dict[str, dict[int, float]] = field(default_factory=dict)
    starved: dict[str, float] = field(default_factory=dict)
    blocked: dict[str, float] = field(default_factory=dict)

    def add(self, other: Profile) -> None:
        """Puts another one's in."""
        for stage, seconds in other.working.items():
            _add(self.working.setdefault(stage, {}), seconds)
        _add(self.starved, other.starved)
        _add(self.blocked, other.blocked)

    def total(self, stage: str) -> float:
        """Seconds that it worked."""
        return sum(self.working.get(stage, {}).values())


def _add(into: dict[K, float], seconds: dict[K, float]) -> None:
    for key, more in seconds.items():
        into[key] = into.get(key, 0.0) + more


class Recorder:
    """What several threads write a profile with. Moments are of `time.time`, so that machines can be put side
    by side.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._profile = Profile()

    def worked(self, stage: str, begin: float, end: float, starved: float = 0.0) -> None:
        """The stage worked from one moment to another, but for the seconds that it waited for its input."""
        share = max(0.0, 1.0 - starved / (end - begin)) if end > begin else 0.0
        seconds: dict[int, float] = {}
        while begin < end:
            until = min(end, int(begin) + 1.0)
            seconds[int(begin)] = share * (until - begin)
            begin = until
        self.add(Profile({stage: seconds}, {stage: starved}))

    def blocked(self, stage: str, seconds: float) -> None:
        """The stage waited for room behind it."""
        self.add(Profile(blocked={stage: seconds}))

    def add(self, other: Profile) -> None:
        """Puts in what another process wrote."""
        with self._lock:
            self._profile.add(other)

    def take(self) -> Profile:
        """What was written since the last call."""
        with self._lock:
            found, self._profile = self._profile, Profile()
            return found
