"""The pictures of `benchmarks.targets`."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from benchmarks.record import RESULTS

TITLES = {
    "error": "squared error of a target",
    "calibration": "misplaced probability",
    "step_error": "error of a step's gradient",
    "step_angle": "angle of a step's gradient, degrees",
}


def curves(name: str, found: dict[str, list[dict[str, float]]]) -> None:
    """What is lost over bytes, on logarithmic axes, a panel for each measure that the points have."""
    shown = [key for key in TITLES if any(key in point for points in found.values() for point in points)]
    figure = Figure(figsize=(4.4 * len(shown), 4.6), layout="constrained")
    figure.suptitle(name)
    for axis, key in zip(figure.subplots(1, len(shown)), shown, strict=True):
        for label, points in found.items():
            if points[0]["bytes"]:
                axis.plot([p["bytes"] for p in points], [p[key] for p in points], marker="o", label=label)
            elif key in points[0]:
                axis.axhline(points[0][key], color="grey", linestyle=":", label=label)
        axis.set(xscale="log", yscale="log", xlabel="bytes per target", title=TITLES[key])
        axis.grid(alpha=0.3, which="both")
    figure.legend(*figure.axes[-1].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(RESULTS / f"targets-{name}.svg")


def students(found: dict[str, dict[str, Any]]) -> None:
    """Validation losses over bytes: every seed a dot, every codec's mean a line."""
    names = sorted(found, key=lambda name: float(found[name]["mean"]))
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axis = figure.subplots()
    for place, name in enumerate(names):
        told = found[name]
        axis.plot(told["losses"], [place] * len(told["losses"]), "o", alpha=0.6)
        axis.plot([told["mean"]] * 2, [place - 0.3, place + 0.3], color="black")
        axis.text(1.01, place, f"{told['bytes']:.0f} B", transform=axis.get_yaxis_transform(), va="center")
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set(xlabel="validation loss, nats a token", title="students at equal steps, and bytes a token")
    axis.grid(alpha=0.3, axis="x")
    figure.savefig(RESULTS / "targets-students.svg")
