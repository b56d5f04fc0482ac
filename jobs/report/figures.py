"""The text leg's figures but for the timeline: losses, bytes, entropies. Knows nothing of the page."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from jobs.demo.results import Bytes, StudentRun
from jobs.report.drawing import (
    INK,
    RULE,
    STORE,
    TEACHER,
    TICK_STEPS,
    TOKENS,
    Canvas,
    drawn,
    label_axes,
    level_grid,
)
from jobs.report.words import number, tick

ENTROPY_BIN = 0.25
"""Width of a bin of the entropy histograms, nats."""


def learning_curves(runs: Sequence[StudentRun], teacher: float) -> str:
    """Validation loss against optimiser steps: every seed thin, their mean bold, the teacher a level line."""
    steps = sorted({point.step for run in runs for point in run.curve})
    shown = [step for step in steps if step >= steps[-1] / 10]
    kinds = (("tokens", TOKENS, "from the tokens alone"), ("store", STORE, "from the store"))

    def draw(canvas: Canvas) -> None:
        axes = canvas.figure.subplots()
        level_grid(axes)
        label_axes(axes, "optimiser steps", "validation loss, nats per token")
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
        axes.xaxis.set_major_locator(MaxNLocator(4 if canvas.narrow else 8, integer=True, steps=TICK_STEPS))
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
        level_grid(axes)
        label_axes(axes, "entropy of the teacher, nats", f"share of the {what}")
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
