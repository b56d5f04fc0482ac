"""`decant label --profile`: a table and a timeline of the stages, and the one to blame.

It knows profiles and terminals, and nothing of how they were taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.profile import STAGES, Profile

WIDTH = 40
"""Columns of the timeline, at most."""

SHADES = " ▁▂▃▄▅▆▇█"

BUSY = 0.9
"""Share of the time from which on the device has nothing to wait for."""

SLACK = 0.3
"""Share of the time below which no stage can be what the device waits for."""

NAMES = {
    "read": "read corpus",
    "views": "render views",
    "receive": "receive views",
    "batch": "form batches",
    "teacher": "teacher's forward",
    "encode": "encode targets",
    "write": "write shards",
}

CURES = {
    "read": "read from storage that is faster or closer, or set label.replicas.units_in_flight higher",
    "views": "set label.batching.threads higher, or have other nodes do it (label.preprocess.actors)",
    "receive": "set label.replicas.units_in_flight higher, or bring the preprocessing actors closer",
    "batch": "set label.batching.budget higher",
    "write": "write to storage that is faster or closer, or set label.replicas.units_in_flight higher",
}

ELSEWHERE = {
    "read": "read from storage that is faster or closer, or set label.preprocess.actors higher",
    "views": "set label.preprocess.actors higher, or cpus",
}
"""The cures where preprocessing actors do it."""


@dataclass(frozen=True)
class Reading:
    """What a profile says. replicas: how many the time was shared by; preprocessing_cpus: of the actors that
    read and rendered for them, if there were any.
    """

    profile: Profile
    replicas: int
    preprocessing_cpus: float = 0.0

    @property
    def first(self) -> int:
        """The second in which something was first at work."""
        return min(second for seconds in self.profile.working.values() for second in seconds)

    @property
    def seconds(self) -> float:
        """From the first second with work to the last, of each replica."""
        last = max(second for seconds in self.profile.working.values() for second in seconds)
        return float(last + 1 - self.first)

    def share(self, stage: str) -> float:
        """Of the time of those who do it, in which the stage worked; above 1 where several of a replica's
        units did.
        """
        return self.profile.total(stage) / (self.seconds * self.doing(stage))

    def doing(self, stage: str) -> float:
        """How many replicas the stage is the work of, or how many CPUs of preprocessing actors."""
        return self.preprocessing_cpus if self._elsewhere(stage) else self.replicas

    def _elsewhere(self, stage: str) -> bool:
        return bool(self.preprocessing_cpus) and "receive" in self.profile.working and stage in ELSEWHERE

    @property
    def idle(self) -> float:
        """Of the time, in which the device neither computed the forward pass nor made targets."""
        return max(0.0, 1.0 - self.share("teacher") - self.share("encode"))

    def verdict(self) -> str:
        """The stage to blame, in a sentence."""
        if self.idle <= 1 - BUSY:
            if self.share("encode") > self.share("teacher"):
                return "Encoding is the limit: store fewer entries (a larger threshold, a smaller k)."
            return "The teacher is the limit, and nothing keeps it waiting."
        stage = max(CURES, key=self.share)
        if self.share(stage) < SLACK:
            return (
                "No stage is busy enough to keep it waiting: there were too few units for the replicas, or "
                "other programs took the cores."
            )
        return (
            f'"{NAMES[stage]}" keeps it waiting, at work {self.share(stage):.0%} of the time: '
            f"{(ELSEWHERE if self._elsewhere(stage) else CURES)[stage]}."
        )

    def timeline(self, stage: str) -> str:
        """A block for each stretch of the time, as high as the stage was busy in it."""
        columns = min(WIDTH, int(self.seconds))
        stretch = self.seconds / columns
        bins = [0.0] * columns
        for second, worked in self.profile.working.get(stage, {}).items():
            bins[min(columns - 1, int((second - self.first) / stretch))] += worked
        most = stretch * self.doing(stage)
        return "".join(SHADES[min(len(SHADES) - 1, round(8 * worked / most))] for worked in bins)

    def render(self) -> Iterator[RenderableType]:
        """Table, timeline and verdict."""
        replicas = f"{self.replicas} replica{'s' if self.replicas > 1 else ''}"
        table = Table(
            box=None,
            padding=(0, 2, 0, 0),
            title=f"where {self.seconds:.0f} s of {replicas} went",
            title_justify="left",
            title_style="bold",
        )
        table.add_column("stage")
        for heading in ("working", "share", "waits for input", "for room"):
            table.add_column(heading, justify="right")
        table.add_column("over time", no_wrap=True)
        for stage in STAGES:
            if stage == "receive" and stage not in self.profile.working:
                continue  # the replicas render by themselves
            table.add_row(
                NAMES[stage] + (" (elsewhere)" if self._elsewhere(stage) else ""),
                f"{self.profile.total(stage):.1f} s",
                f"{self.share(stage):.0%}",
                _seconds(self.profile.starved.get(stage)),
                _seconds(self.profile.blocked.get(stage)),
                self.timeline(stage),
            )
        yield table
        yield Text(f"The device was idle {self.idle:.0%} of the time. {self.verdict()}")


def _seconds(wait: float | None) -> str:
    return f"{wait:.1f} s" if wait else ""
