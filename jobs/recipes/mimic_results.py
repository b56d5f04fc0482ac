"""What came out of Ba & Caruana's recipe, beside the paper's: a table, a picture. It trains nothing."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from jobs.recipes.results import Results, Row

KINDS = {"labels": "labels", "mimic": "mimic of the ensemble, L2 on logits"}
"""Of every size."""

LARGEST = {
    "single": ("mimic of the weakest teacher, L2", "v"),
    "kl": ("mimic of the ensemble, KL at T = 1", "s"),
    "augmented": ("labels, on the mimics' views", "*"),
}
"""Of the largest size alone, with the marks that they are drawn as."""


def rows(settings: dict[str, Any]) -> list[Row]:
    """The table's, for these sizes and teachers. The paper's are test accuracies in percent (its table 2)."""
    *_, largest = sizes = list(settings["student"]["sizes"])
    return [
        *(Row(f"resnet{depth}", f"ResNet-{depth}", None) for depth in settings["teachers"]),
        Row("ensemble", "teacher: the ensemble", 89.0),
        *(
            Row(f"{kind}-{size}", f"{size} net, {title}", paper.get((kind, size == largest)))
            for size in sizes
            for kind, title in KINDS.items()
            for paper in ({("labels", True): 78.2, ("mimic", True): 85.8},)
        ),
        *(
            Row(f"{kind}-{largest}", f"{largest} net, {title}", 84.9 if kind == "single" else None)
            for kind, (title, _) in LARGEST.items()
        ),
    ]


def draw(results: Results, path: Path) -> None:
    """Accuracy over weights: every seed a dot, means in lines, the teachers as levels."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axis = figure.subplots()
    student, values = results.settings["student"], results.values
    weights = {size: values[f"weights {size}"][0] for size in student["sizes"]}
    *_, largest = weights
    for kind, title in KINDS.items():
        found = {size: values[f"{kind}-{size}"] for size in weights}
        (line,) = axis.plot(
            list(weights.values()), [fmean(v) for v in found.values()], marker="_", label=title
        )
        for size, accuracies in found.items():
            axis.plot([weights[size]] * len(accuracies), accuracies, "o", color=line.get_color(), alpha=0.5)
    for kind, (title, marker) in LARGEST.items():
        accuracies = values[f"{kind}-{largest}"]
        axis.plot([weights[largest]] * len(accuracies), accuracies, marker, alpha=0.5, label=title)
    for name in ("ensemble", f"resnet{results.settings['teachers'][0]}"):
        axis.axhline(values[name][0], color="grey", linestyle=":")
        axis.annotate(name, (min(weights.values()), values[name][0]), va="bottom", fontsize=8)
    axis.set(xscale="log", xlabel="weights", ylabel="test accuracy, %", title="shallow nets on CIFAR-10")
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=8)
    figure.savefig(path)
