"""The digits leg's table of test errors, for the console. Knows the results, not how they came about."""

from __future__ import annotations

from statistics import mean, stdev

from rich.table import Table

from jobs.demo.results import DigitsLeg


def digits_table(leg: DigitsLeg) -> Table:
    """A line for the teacher, its networks and every way to teach the shallow net; the store's are bold."""
    seeds = max(len(row.test_errors) for row in leg.table if row.kind == "store")
    weights = {row.parameters for row in leg.table if row.kind == "store"}
    table = Table(
        box=None,
        padding=(0, 2),
        title=f"errors among {leg.test_examples} test digits, {seeds} seed{'' if seeds == 1 else 's'}; "
        f"the shallow net has {max(weights):,} weights",
        title_justify="left",
        title_style="bold",
    )
    for heading in ("", "from", "by"):
        table.add_column(heading)
    for heading in ("errors", "%", "±"):
        table.add_column(heading, justify="right")
    who = {"teacher": "teacher", "member": "its networks"}
    for row in leg.table:
        percent = [100 * error for error in row.test_errors]
        table.add_row(
            who.get(row.kind, "shallow net"),
            row.teaches,
            row.name,
            f"{mean(row.test_errors) * leg.test_examples:.1f}",
            f"{mean(percent):.2f}",
            f"{stdev(percent):.2f}" if len(percent) > 1 else "",
            style="bold" if row.kind == "store" else None,
        )
    return table
