"""What a person sees of a job that runs elsewhere: sums over what its store tells, and rates of late.

It knows the store alone: no driver is asked, so it works from any machine that can read the store, for any
number of drivers. What commit records do not say it does not guess: replicas are told by how many units were
being labelled at a time.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from jobs.terminal import bar, count, duration, size
from jobs.totals import targets_are
from pipeline.targets.follow import Follower, UnitsTakenOut

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.targets.store import Store

RECORDS_AT_ONCE = 10_000
"""Commit records that one look lists and reads at most: on S3 ten lists, and a read for each new one."""

REASONS_AT_ONCE = 8
"""Quarantine files that one look reads at most, of the latest units with failures."""

Floats = npt.NDArray[np.float64]


class Watched:
    """A store as it grows; a view for `jobs.progress.Display`.

    window_seconds: what rates and the time left are judged by.
    """

    def __init__(self, store: Store, window_seconds: float) -> None:
        self.store, self.window = store, window_seconds
        self.target = targets_are(store.spec)
        self.note = ""
        self.messages: list[str] = []
        self._anew()

    def _anew(self) -> None:
        self._follower = Follower(self.store)
        self.planned = 0
        self.sums: Counter[str] = Counter()
        self.devices: Counter[str] = Counter()
        self.reasons: Counter[tuple[str, str]] = Counter()
        self.examined = 0
        """Units whose quarantine files were read for `reasons`."""
        self._recent: deque[Floats] = deque()
        self._finished = -np.inf

    @property
    def committed(self) -> int:
        """Units that have been seen committed."""
        return self._follower.committed

    @property
    def complete(self) -> bool:
        """Whether all that is planned is committed."""
        return 0 < self.planned <= self.committed

    def look(self, all_of_it: bool = False) -> None:
        """See what is new. all_of_it: however much that is. Raises what a broken store raises."""
        try:
            self._look(None if all_of_it else RECORDS_AT_ONCE)
        except UnitsTakenOut:
            self.messages.append("units were taken out of the store; counting anew")
            self._anew()
            self._look(None)

    def _look(self, most: int | None) -> None:
        self.planned = self.store.planned_count()
        failed: deque[dict[str, Any]] = deque(maxlen=REASONS_AT_ONCE)
        for batch in self._follower.refresh(most):
            self._add(batch)
            bad = batch.filter(batch.column("failures").to_numpy() > 0)
            failed.extend(bad.slice(max(len(bad) - REASONS_AT_ONCE, 0)).to_pylist())
        for row in failed:
            self._examine(row)

    def _add(self, batch: pa.RecordBatch) -> None:
        def column(name: str) -> npt.NDArray[Any]:
            values: npt.NDArray[Any] = batch.column(name).to_numpy()
            return values

        if not len(batch):
            return
        targets = np.where(column("targets") > 0, column("targets"), column("rows"))
        for name in ("records", "rows", "shard_bytes", "quarantined", "failures", "forward_seconds"):
            self.sums[name] += column(name).sum().item()
        self.sums["targets"] += targets.sum().item()
        for device in batch.column("device").value_counts().to_pylist():
            if device["values"]:  # none where nothing of a unit reached a teacher
                self.devices[device["values"]] += device["counts"]
        started, finished = column("started"), column("finished")
        self._finished = max(self._finished, finished.max().item())
        begin = self._now() - self.window
        rows = np.stack([started, finished, column("records"), targets], axis=1)
        self._recent.append(rows[finished >= begin])
        while self._recent and not (self._recent[0][:, 1] >= begin).any():
            self._recent.popleft()

    def _examine(self, row: dict[str, Any]) -> None:
        from pipeline.targets.commit import Commit

        self.examined += 1
        for item in self.store.quarantined(Commit(**row, statistics={}, histograms={})):
            if item.code != "empty":
                # Reasons name their record, so they are counted without it.
                self.reasons[item.code, item.reason.replace(item.key, "…")] += 1

    def _now(self) -> float:
        """This machine's time, or the labellers' if their clocks are ahead of it."""
        return max(time.time(), self._finished)

    def rates(self) -> dict[str, float]:
        """Units, records and targets a second, and units that were being labelled at a time, of late."""
        end = self._now()
        begin = end - self.window
        rows = np.concatenate([np.zeros((0, 4)), *list(self._recent)])
        rows = rows[rows[:, 1] >= begin]
        if not len(rows):
            return dict.fromkeys(("units", "records", "targets", "in_flight"), 0.0)
        # A job younger than the window is judged by its own age.
        begin = max(begin, rows[:, 0].min())
        span = max(end - begin, 1e-9)
        busy = (rows[:, 1] - np.maximum(rows[:, 0], begin)).sum()
        return {
            "units": len(rows) / span,
            "records": rows[:, 2].sum().item() / span,
            "targets": rows[:, 3].sum().item() / span,
            "in_flight": busy.item() / span,
        }

    def state(self) -> dict[str, Any]:
        """All of it as plain data: what `--json` prints."""
        rates, left = self.rates(), max(self.planned - self.committed, 0)
        targets = self.sums["targets"]
        return {
            "store": self.store.url,
            "complete": self.complete,
            "units": {"planned": self.planned, "committed": self.committed},
            "records": self.sums["records"],
            self.target: targets,
            "shard_bytes": self.sums["shard_bytes"],
            "bytes_per_target": self.sums["shard_bytes"] / targets if targets else None,
            "window_seconds": self.window,
            "units_per_second": rates["units"],
            "records_per_second": rates["records"],
            f"{self.target}_per_second": rates["targets"],
            "units_in_flight": rates["in_flight"],
            "seconds_left": left / rates["units"] if rates["units"] else (0.0 if self.complete else None),
            "seconds_since_commit": self._now() - self._finished if self.committed else None,
            "devices": dict(self.devices),
            "forward_seconds": self.sums["forward_seconds"],
            "quarantined": {
                "failures": self.sums["failures"],
                "empty": self.sums["quarantined"] - self.sums["failures"],
                "examined_units": self.examined,
                "reasons": [
                    {"code": code, "reason": reason, "count": number}
                    for (code, reason), number in self.reasons.most_common(5)
                ],
            },
        }

    def facts(self) -> list[tuple[str, str]]:
        """Name and value, in the order shown."""
        state, kind = self.state(), self.target.removesuffix("s")
        each, since = state["bytes_per_target"], state["seconds_since_commit"]
        return [
            ("units", f"{count(self.committed)} of {count(self.planned)}"),
            ("records/s", f"{state['records_per_second']:,.1f}"),
            (f"{self.target}/s", f"{state[f'{self.target}_per_second']:,.0f}"),
            (f"bytes/{kind}", "–" if each is None else f"{each:.1f}"),
            ("written", size(state["shard_bytes"])),
            ("in flight", f"{state['units_in_flight']:,.1f}"),
            ("quarantined", count(state["quarantined"]["failures"])),
            ("left", duration(state["seconds_left"])),
            ("last commit", "none yet" if since is None else f"{duration(since)} ago"),
        ]

    def line(self) -> str:
        """All of it in one plain line."""
        return ", ".join(f"{name} {value}" for name, value in self.facts())

    def table(self) -> Table:
        """Everything, a line each."""
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        table.add_row("store", escape(self.store.url))
        for name, value in self.facts():
            table.add_row(name, value)
        for device, units in self.devices.most_common():
            table.add_row("labelled on", escape(f"{device}: {count(units)} units"))
        for (code, reason), number in self.reasons.most_common(5):
            table.add_row("quarantine", escape(f"{count(number)} {code}: {reason}"))
        if self.reasons:
            table.add_row("", f"(as in {count(self.examined)} of the units with failures)")
        return table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield bar(self.committed, self.planned, options.max_width)
        yield self.table()
        for message in self.messages[-2:]:
            yield Text(message, style="yellow")
