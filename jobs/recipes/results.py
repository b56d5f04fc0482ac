"""What a recipe leaves: values by name and seed, written as JSON and as a table. It knows no paper."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any


@dataclass(frozen=True)
class Row:
    """A line of a recipe's table. paper: the published value, in the unit of ours; None if there is none."""

    name: str
    title: str
    paper: float | None


@dataclass
class Results:
    """settings: of the recipe, as JSON; values: by name, one for each seed."""

    settings: Mapping[str, Any]
    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        """One seed's value."""
        self.values.setdefault(name, []).append(round(float(value), 6))

    def write(self, path: Path) -> None:
        """As JSON, all or nothing."""
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(asdict(self), indent=1) + "\n")
        os.replace(unfinished, path)

    def table(self, rows: Sequence[Row], digits: int = 0) -> str:
        """Markdown: mean, sample standard deviation, every seed, and the paper's value and ours over it."""
        lines = ["| | mean | ± | seeds | paper | ours / paper |", "|---|---|---|---|---|---|"]
        for row in rows:
            if not (values := self.values.get(row.name)):
                continue
            mean, spread = fmean(values), stdev(values) if len(values) > 1 else math.nan
            title = row.title.strip()
            cells = [
                f"– {title}" if row.title.startswith(" ") else title,
                f"{mean:,.{digits}f}",
                "" if math.isnan(spread) else f"{spread:,.{digits}f}",
                ", ".join(f"{value:,.{digits}f}" for value in values),
                "" if row.paper is None else f"{row.paper:,.{digits}f}",
                "" if row.paper is None else f"{mean / row.paper:.2f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"
