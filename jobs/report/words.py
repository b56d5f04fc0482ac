"""How the report writes numbers: as many digits as mean something, units beside them."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev


def number(value: float) -> str:
    """12345 as '12,345', 19.26 as '19.3', 0.0841 as '0.084', and whole numbers whole."""
    if value == round(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2g}" if abs(value) < 1 else f"{value:.2f}"


def tick(value: float) -> str:
    """A mark of an axis: 20,000,000 as '20 M', else as `number`."""
    return f"{value / 1e6:g} M" if abs(value) >= 1e6 else number(value)


def spread(values: Sequence[float], places: int) -> str:
    """'1.85 ± 0.12': mean and standard deviation (of a sample); of one value, the value."""
    if len(values) < 2:
        return f"{mean(values):.{places}f}"
    return f"{mean(values):.{places}f} ± {stdev(values):.{places}f}"


def over_seeds(seeds: int) -> str:
    """What a figure is over several runs, for a caption."""
    return "one seed" if seeds == 1 else f"mean and standard deviation over {seeds} seeds"


def plural(count: int, what: str) -> str:
    """'1 shard', '2,000 shards'."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"
