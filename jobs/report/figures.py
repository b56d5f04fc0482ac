"""Figures as inline SVG, drawn by matplotlib. Knows what is plotted, and nothing of the page around it.

Every figure is drawn twice, for a wide and for a narrow screen, because an SVG that is scaled down takes its
letters along. Text stays text, in the page's own font, and colours are the page's variables, so one drawing
serves light and dark.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from jobs.demo.results import Bytes, CommittedUnit, DigitSample, Labelling, StudentRun
from jobs.report.words import number, tick

INK, MUTED, RULE = "#a00001", "#a00002", "#a00003"
STORE, TOKENS, TEACHER, KILL = "#a00004", "#a00005", "#a00006", "#a00007"
_VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    RULE: "rule",
    STORE: "store",
    TOKENS: "tokens",
    TEACHER: "teacher",
    KILL: "kill",
}
"""Colours that occur nowhere else, and the page's variables that take their place."""

WIDE, NARROW = 720, 340
"""Widths of the two drawings, in CSS pixels."""

_STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 12,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 12,
    "axes.linewidth": 1,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 1,
    "lines.linewidth": 2,
    "lines.solid_capstyle": "round",
    "text.color": INK,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}

_STEPS = [1, 2, 2.5, 5, 10]
"""Between ticks."""

ENTROPY_BIN = 0.25
"""Width of a bin of the entropy histograms, nats."""


@dataclass(frozen=True)
class Canvas:
    """One of the two drawings of a figure."""

    figure: Figure
    narrow: bool


def drawn(name: str, height: int, draw: Callable[[Canvas], None], alternative: str) -> str:
    """The figure for wide and narrow screens, as HTML. height: CSS pixels; alternative: its words."""
    return "".join(
        f'<div class="{kind}">{_svg(f"{name}-{kind}", width, height, draw, alternative)}</div>'
        for kind, width in (("wide", WIDE), ("narrow", NARROW))
    )


def _svg(name: str, width: int, height: int, draw: Callable[[Canvas], None], alternative: str) -> str:
    # The salt keeps the ids of the page's figures apart, and the same from run to run.
    with rc_context(_STYLE), rc_context({"svg.hashsalt": name}):
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        draw(Canvas(figure, width == NARROW))
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = file.getvalue()
    svg = svg[svg.index(">", svg.index("<svg")) + 1 :]
    for needless in (
        r"<style.*?</style>",
        r"<!--.*?-->",
        r"font-family:[^;\"]*;?\s*",
        r"\s*<defs>\s*</defs>",
    ):
        svg = re.sub(needless, "", svg, flags=re.DOTALL)
    used = set(re.findall(r"#([^\")]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", svg)
    svg = re.sub(r' (?:d|x|y|width|height|transform)="[^"]*"', _rounded, svg)
    svg = re.sub(r"\n\s*", "\n", svg)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, f"var(--{variable})")
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(alternative)}">{svg}'


def _rounded(attribute: re.Match[str]) -> str:
    """A tenth of a pixel is fine enough, and half the bytes."""
    return re.sub(r"(\.\d)\d+", r"\1", attribute[0])


def _label_axes(axes: Axes, across: str, up: str) -> None:
    """Names and units; the upright axis has its name above it, where nobody must turn the head."""
    axes.set_xlabel(across, loc="right")
    axes.set_title(up, loc="left", fontsize=12, color=MUTED, pad=10)


def _grid(axes: Axes) -> None:
    axes.grid(axis="y")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


# The text leg


def learning_curves(runs: Sequence[StudentRun], teacher: float) -> str:
    """Validation loss against optimiser steps: every seed thin, their mean bold, the teacher a level line."""
    steps = sorted({point.step for run in runs for point in run.curve})
    shown = [step for step in steps if step >= steps[-1] / 10]
    kinds = (("tokens", TOKENS, "from the tokens alone"), ("store", STORE, "from the store"))

    def draw(canvas: Canvas) -> None:
        axes = canvas.figure.subplots()
        _grid(axes)
        _label_axes(axes, "optimiser steps", "validation loss, nats per token")
        ends: list[tuple[float, str, str]] = [(teacher, TEACHER, "the teacher")]
        for name, color, words in kinds:
            curves = [{point.step: point.val_nll for point in run.curve} for run in runs if run.name == name]
            if not curves:
                continue
            for curve in curves:
                kept = [step for step in shown if step in curve]
                axes.plot(kept, [curve[step] for step in kept], color=color, linewidth=1, alpha=0.45)
            common = [step for step in shown if all(step in curve for curve in curves)]
            mean = [float(np.mean([curve[step] for curve in curves])) for step in common]
            axes.plot(common, mean, color=color, linewidth=2.5, marker="o", markersize=4, clip_on=False)
            ends.append((mean[-1], color, words))
        axes.axhline(teacher, color=TEACHER, linestyle=(0, (4, 3)), linewidth=1.5)
        axes.margins(x=0, y=0.08)
        axes.xaxis.set_major_locator(MaxNLocator(4 if canvas.narrow else 8, integer=True, steps=_STEPS))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
        _label_ends(axes, ends, canvas.narrow)

    final = {
        name: float(np.mean([run.final for run in runs if run.name == name] or [math.nan]))
        for name, _, _ in kinds
    }
    words = (
        f"Validation loss of the students: {final['tokens']:.3f} from the tokens alone, "
        f"{final['store']:.3f} from the store, {teacher:.3f} the teacher, in nats per token."
    )
    return drawn("curves", 340, draw, words)


def _label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]], narrow: bool) -> None:
    """Names of lines, beside their ends and apart from each other; on a narrow screen above the plot."""
    if narrow:
        handles = [Line2D([], [], color=color, linewidth=2.5) for _, color, _ in ends]
        axes.figure.legend(
            handles,
            [words for _, _, words in ends],
            loc="outside upper left",
            frameon=False,
            ncols=1,
            fontsize=11,
            handlelength=1.2,
        )
        return
    low, high = axes.get_ylim()
    apart = (high - low) * 0.07
    place = -math.inf
    for value, color, words in sorted(ends):
        place = max(value, place + apart)
        axes.annotate(
            words,
            (1, place),
            xycoords=("axes fraction", "data"),
            xytext=(8, 0),
            textcoords="offset points",
            color=color,
            va="center",
            annotation_clip=False,
        )


def bytes_per_token(cost: Bytes, codec: str) -> str:
    """What one token's targets cost by each way to store them: bars on a logarithmic scale."""
    bars = [("all logits, float32", cost.dense_float32), ("all logits, float16", cost.dense_float16)]
    bars += [(f"top {k}, ids and tail", size) for k, size in sorted(cost.topk.items(), reverse=True)]
    bars.append((f"{codec}, as stored", cost.shards))

    def draw(canvas: Canvas) -> None:
        axes = canvas.figure.subplots()
        places = np.arange(len(bars))[::-1]
        sizes = [size for _, size in bars]
        axes.set_xscale("log")
        low = min(1.0, *sizes)
        colors = [RULE] * (len(bars) - 1) + [STORE]
        axes.barh(places, [size - low for size in sizes], left=low, height=0.66, color=colors)
        axes.set_yticks(places, [name for name, _ in bars])
        axes.tick_params(axis="y", length=0, labelcolor=INK, labelsize=11 if canvas.narrow else 12)
        for place, size in zip(places, sizes, strict=True):
            axes.annotate(
                number(size),
                (size, place),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                weight="bold" if place == 0 else "normal",
            )
        axes.set_xlim(low, max(sizes) * (12 if canvas.narrow else 2.5))
        axes.xaxis.set_major_locator(LogLocator(100 if canvas.narrow else 10))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("bytes per token, logarithmic scale", loc="right")

    words = "Bytes per token: " + ", ".join(f"{name} {number(size)}" for name, size in bars) + "."
    return drawn("bytes", 46 + 34 * len(bars), draw, words)


def entropies(histogram: Sequence[int], mean: float, what: str, name: str) -> str:
    """Share of targets by the entropy of the teacher's distribution."""
    total = sum(histogram)
    last = max((i for i, count in enumerate(histogram) if count), default=0)
    # One more than the last that shows: a tail of a few tokens would only squeeze the rest.
    reach = next((i for i in range(last + 1) if sum(histogram[i + 1 :]) <= total / 1000), len(histogram) - 1)
    shares = [100 * count / max(1, total) for count in histogram[: reach + 1]]

    def draw(canvas: Canvas) -> None:
        axes = canvas.figure.subplots()
        _grid(axes)
        _label_axes(axes, "entropy of the teacher, nats", f"share of the {what}")
        edges = ENTROPY_BIN * np.arange(len(shares))
        axes.bar(edges, shares, width=ENTROPY_BIN * 0.86, align="edge", color=TEACHER)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
        axes.axvline(mean, color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.set_xlim(0, max(ENTROPY_BIN * len(shares), mean + ENTROPY_BIN))
        axes.set_ylim(0, 1.15 * max(shares) or 1)  # room for the word above the bars
        right = mean < 0.6 * axes.get_xlim()[1]
        axes.annotate(
            f"mean {mean:.2f}",
            (mean, 1),
            xycoords=("data", "axes fraction"),
            xytext=(6 if right else -6, -2),
            textcoords="offset points",
            ha="left" if right else "right",
            va="top",
        )

    words = f"Histogram of the teacher's entropy over the {what}; the mean is {mean:.2f} nats."
    return drawn(name, 260, draw, words)


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
        _grid(above)
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
        below.xaxis.set_major_locator(MaxNLocator(5 if canvas.narrow else 9, steps=_STEPS))
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


# The digits leg


def digit(sample: DigitSample) -> str:
    """One digit, and below it the likeliest classes with the teacher's probabilities."""
    levels: dict[int, list[str]] = {}
    for i, pixel in enumerate(sample.pixels):
        level = round(pixel / 255 * 16)
        if level:
            levels.setdefault(level, []).append(f"M{i % 8} {i // 8}h1v1h-1z")
    ink = "".join(
        f'<path d="{"".join(cells)}" opacity="{level / 16:.2g}"/>' for level, cells in sorted(levels.items())
    )
    order = sorted(range(len(sample.probabilities)), key=lambda i: -sample.probabilities[i])
    likely = [i for i in order[:3] if i == order[0] or sample.probabilities[i] >= 0.01]
    said = "<br>".join(f"{i}: {100 * sample.probabilities[i]:.0f} %" for i in likely)
    return (
        f'<figure class="digit"><svg viewBox="0 0 8 8" shape-rendering="crispEdges" role="img" '
        f'aria-label="a jittered digit">{ink}</svg><figcaption>{said}</figcaption></figure>'
    )
