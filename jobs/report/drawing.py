"""How a figure becomes inline SVG: colours, letters, two widths. Knows nothing of what is plotted.

Every figure is drawn twice, for a wide and for a narrow screen, because an SVG that is scaled down takes its
letters along. Text stays text, in the page's own font, and colours are the page's variables, so one drawing
serves light and dark.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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

TICK_STEPS = [1, 2, 2.5, 5, 10]
"""Between ticks."""


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


def label_axes(axes: Axes, across: str, up: str) -> None:
    """Names and units; the upright axis has its name above it, where nobody must turn the head."""
    axes.set_xlabel(across, loc="right")
    axes.set_title(up, loc="left", fontsize=12, color=MUTED, pad=10)


def level_grid(axes: Axes) -> None:
    """Level lines alone, and no upright axis."""
    axes.grid(axis="y")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
