"""The figure of a labelling run: throughput, the replicas' lanes, and the kill."""

from __future__ import annotations

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator

from jobs.demo.results import CommittedUnit, Labelling
from jobs.report.drawing import INK, KILL, MUTED, STORE, TICK_STEPS, Canvas, drawn, level_grid
from jobs.report.words import tick


def timeline(labelling: Labelling) -> str:
    """Throughput over time above the replicas' lanes with their units, and the kill through both."""
    units = labelling.units
    end = max([unit.finished for unit in units], default=1.0)
    kill = labelling.kill
    lanes = _lanes(labelling)
    depth = sum(len(rows) for _, rows in lanes)

    def draw(canvas: Canvas) -> None:
        grid = {"height_ratios": [150, 16 * depth + 14 * len(lanes)]}
        above, below = canvas.figure.subplots(2, 1, sharex=True, gridspec_kw=grid)
        level_grid(above)
        above.set_title(
            "tokens labelled per second", loc="left", fontsize=12, color=MUTED, pad=22 if kill else 10
        )
        edges, rates = _throughput(labelling, end)
        above.stairs(rates, edges, fill=True, color=STORE, alpha=0.25, linewidth=0)
        above.stairs(rates, edges, color=STORE, linewidth=1.5, baseline=None)
        above.set_ylim(0, max(rates, default=1.0) * 1.08)
        above.yaxis.set_major_locator(MaxNLocator(4))
        above.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
        above.tick_params(axis="x", length=0)
        above.spines["bottom"].set_visible(False)

        place, marks = 0.0, []
        for replica, rows in lanes:
            for row in rows:
                spans = [(unit.started, max(unit.finished - unit.started, end / 500)) for unit in row]
                below.broken_barh(
                    spans, (place, 0.8), facecolor=STORE, alpha=0.55, edgecolor="none", linewidth=0
                )
                for unit in row:
                    below.plot([unit.finished] * 2, [place, place + 0.8], color=STORE, linewidth=1.5)
                place += 1
            marks.append((place - len(rows) / 2 - 0.1, f"replica {replica}"))
            place += 0.8
        below.set_yticks([at for at, _ in marks], [name for _, name in marks])
        below.tick_params(axis="y", length=0, labelcolor=INK)
        below.set_ylim(place - 0.6, -0.4)
        below.spines["left"].set_visible(False)
        below.set_xlim(0, end * 1.01)
        below.xaxis.set_major_locator(MaxNLocator(5 if canvas.narrow else 9, steps=TICK_STEPS))
        below.set_xlabel("seconds since labelling began", loc="right")
        if kill is not None:
            for axes in (above, below):
                axes.axvline(kill.at, color=KILL, linewidth=1.5)
            for at, name in marks:
                if name == f"replica {kill.replica}":
                    below.plot(kill.at, at, marker="x", markersize=11, markeredgewidth=3, color=KILL)
            right = kill.at < 0.6 * end
            above.annotate(
                f"kill -9 replica {kill.replica}",
                (kill.at, 1),
                xycoords=("data", "axes fraction"),
                xytext=(-3 if right else 3, 5),
                textcoords="offset points",
                color=KILL,
                ha="left" if right else "right",
                va="bottom",
                annotation_clip=False,
            )

    words = f"Labelling over {end:.0f} seconds by {len(lanes)} replicas." + (
        f" Replica {kill.replica} was killed at {kill.at:.1f} seconds." if kill else ""
    )
    return drawn("timeline", 250 + 16 * depth + 10 * len(lanes), draw, words)


def _lanes(labelling: Labelling) -> list[tuple[str, list[list[CommittedUnit]]]]:
    """By replica: rows of units that do not overlap (a replica may work on two)."""
    lanes: dict[str, list[list[CommittedUnit]]] = {}
    for unit in sorted(labelling.units, key=lambda unit: unit.started):
        rows = lanes.setdefault(unit.replica, [])
        free = next((row for row in rows if row[-1].finished <= unit.started + 1e-3), None)
        if free is None:
            rows.append([unit])
        else:
            free.append(unit)
    return sorted(lanes.items(), key=lambda lane: (len(lane[0]), lane[0]))


def _throughput(labelling: Labelling, end: float) -> tuple[list[float], list[float]]:
    """Edges in seconds and targets per second between them: each unit's targets spread over its own time."""
    count = int(min(60, max(12, end // 2)))
    edges = np.linspace(0, end, count + 1)
    rates = np.zeros(count)
    for unit in labelling.units:
        overlap = np.minimum(edges[1:], unit.finished) - np.maximum(edges[:-1], unit.started)
        rates += unit.targets / max(unit.finished - unit.started, 1e-9) * np.maximum(0, overlap)
    return edges.tolist(), (rates / np.diff(edges)).tolist()
