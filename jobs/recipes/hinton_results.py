"""What came out of Hinton's recipe, beside the paper's figures: a table, a picture. It trains nothing."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from jobs.recipes.results import Results, Row

ROWS = (
    Row("teacher", "teacher, dropout, jittered digits", 67),
    Row("ensemble-teacher", "ensemble of teachers", None),
    Row("hard", "student, labels", 146),
    Row("soft", "student, store at T = 20", 74),
    Row("ensemble", "student, store of the ensemble", None),
    Row("no-3", "student, store without 3s", 206),
    Row("no-3, threes", "  of which 3s", 133),
    Row("no-3, corrected", "  bias of 3 corrected", 109),
    Row("no-3, corrected, threes", "  of which 3s", 14),
    Row("7-8", "student, store of 7s and 8s alone", 4730),
    Row("7-8, corrected", "  biases of 7 and 8 corrected", 1320),
    Row("few-hard", "student, labels of 3 %", None),
    Row("few-soft", "student, store of 3 %", None),
)
"""In the order of the table; the paper's are errors among the 10,000 test digits."""


def temperature_name(width: int, temperature: float) -> str:
    """Of a student of the sweep."""
    return f"sweep-{width}-{temperature:g}"


def bias_corrected(
    logits: Tensor, labels: npt.NDArray[np.int64], classes: list[int], shifts: npt.NDArray[np.float64]
) -> tuple[float, Tensor]:
    """The shift of some classes' biases with the fewest errors, and the logits with it.

    As in the paper it is chosen on the test set: it tells what the student has learned but for the prior.
    """
    truth = torch.from_numpy(labels)

    def shifted(shift: float) -> Tensor:
        moved = logits.clone()
        moved[:, classes] += shift
        return moved

    best = min(shifts.tolist(), key=lambda shift: int((shifted(shift).argmax(-1) != truth).sum()))
    return best, shifted(best)


def draw(results: Results, path: Path) -> None:
    """Four panels: the main errors, digits that were never seen, temperatures, few labels."""
    figure = Figure(figsize=(10, 7.6), layout="constrained")
    axes = figure.subplots(2, 2)
    _dots(
        axes[0, 0],
        results,
        "errors among 10,000 test digits",
        ["teacher", "ensemble-teacher", "hard", "soft", "ensemble"],
    )
    unseen = ["no-3", "no-3, threes", "no-3, corrected", "no-3, corrected, threes", "7-8", "7-8, corrected"]
    _dots(axes[0, 1], results, "errors, with digits never seen", unseen, logarithmic=True)
    _temperatures(axes[1, 0], results)
    _dots(axes[1, 1], results, "errors, 3 % of the transfer set", ["few-hard", "few-soft", "soft"])
    figure.savefig(path)


def _dots(axis, results: Results, title: str, names: list[str], logarithmic: bool = False) -> None:  # type: ignore[no-untyped-def]
    """Every seed a dot, their mean a line, the paper's a triangle; what has not run has no line."""
    rows = {row.name: row for row in ROWS}
    names = [name for name in names if name in results.values]
    for place, name in enumerate(names):
        values = results.values[name]
        axis.plot(values, [place] * len(values), "o", color="tab:blue", alpha=0.6, label="a seed")
        axis.plot([fmean(values)] * 2, [place - 0.3, place + 0.3], color="black", label="mean")
        if (paper := rows[name].paper) is not None:
            axis.plot([paper], [place], "^", color="tab:orange", label="paper")
    axis.set_yticks(range(len(names)), [rows[name].title.strip() for name in names])
    axis.invert_yaxis()
    axis.set(title=title, xscale="log" if logarithmic else "linear")
    axis.grid(alpha=0.3, axis="x")
    handles, labels = axis.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    axis.legend(unique.values(), unique.keys(), fontsize=8)


def _temperatures(axis, results: Results) -> None:  # type: ignore[no-untyped-def]
    """A line for each width: its errors over those of its best temperature."""
    sweep = results.settings["sweep"]
    for width in sweep["widths"]:
        names = [temperature_name(width, temperature) for temperature in sweep["temperatures"]]
        found = [results.values[name] for name in names]
        (line,) = axis.plot(
            sweep["temperatures"], [fmean(v) for v in found], marker="_", label=f"2 × {width} units"
        )
        for temperature, values in zip(sweep["temperatures"], found, strict=True):
            axis.plot([temperature] * len(values), values, "o", color=line.get_color(), alpha=0.5)
    axis.set(
        title="errors, smaller students", xscale="log", yscale="log", xlabel="temperature of the targets"
    )
    axis.set_xticks(sweep["temperatures"], [f"{t:g}" for t in sweep["temperatures"]], minor=False)
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=8)
