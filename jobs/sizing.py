"""Codec parameters from a budget: what a pilot found, as a table and as a picture.

It knows pilots and how their points are shown. Nothing is written but the picture.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from jobs.terminal import count, duration, size
from pipeline.targets.codecs import Codec, Threshold, TopK
from pipeline.targets.codecs.base import as_mapping, id_dtype
from pipeline.targets.errors import ConfigError, UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pipeline.answers import Answers
    from pipeline.job import LabelJob
    from pipeline.pilot import Pilot, Point
    from pipeline.targets.spec import Head

NEIGHBOURS = (0.5, 2.0)
"""Of the chosen threshold, for comparison."""

CURVE_THRESHOLDS = tuple(float(x) for x in np.geomspace(0.3, 0.002, 9))
CURVE_KS = (1, 2, 4, 8, 16, 32, 64, 128)
"""What the picture's curves go through."""


@dataclass(frozen=True)
class Corpus:
    """What there is to label. targets: estimated; seconds: of one replica's teacher for all of them."""

    targets: float
    seconds: float
    replicas: int

    @classmethod
    def of(cls, job: LabelJob, pilot: Answers) -> Corpus:
        """A job's, judged by what a pilot has seen of it."""
        targets = sum(unit.size_bytes for unit in job.corpus.units()) * pilot.targets_per_byte()
        replicas = job.label.replicas.max if job.label.engine == "ray" else 1
        return cls(targets, targets * pilot.seconds_per_target(), replicas)


@dataclass(frozen=True)
class Wish:
    """What is to be found. targets: of the pilot; budget: bytes of a target; plot: where the picture goes."""

    head: str
    targets: int
    budget: float | None
    error: float | None
    plot: Path | None


@dataclass(frozen=True)
class Sized:
    """What was found. target: what one is called; setting: what takes the chosen codec, on a command line."""

    table: Table
    corpus: Corpus
    target: str
    setting: str


def find(job: LabelJob, wish: Wish, progress: Callable[[str], None]) -> Sized:
    """The threshold of a head of logits. Raises UserError for another codec, and as `choose`."""
    from pipeline.pilot import Pilot

    kind = job.store.heads[wish.head].kind
    if kind != "threshold":
        raise UserError(
            f"a budget sizes the threshold codec, and the head {wish.head} has {kind}: give "
            f"store.heads.{wish.head}={{kind: threshold}}"
        )
    with Pilot(job, wish.targets, wish.head) as pilot:
        progress(f"looking for a threshold with {count(pilot.targets)} targets …")
        chosen = choose(pilot, wish.budget, wish.error)
        points = compared(pilot, chosen, progress)
        progress("counting the corpus …")
        corpus = Corpus.of(job, pilot)
        if wish.plot is not None:
            draw(pilot, points[0], wish.plot, progress)
        target = called(pilot.head)
    setting = f"store.heads.{wish.head}.threshold={chosen.threshold:.4g}"
    return Sized(table(points, corpus, target), corpus, target, setting)


def called(head: Head) -> str:
    """What a target of a head is called."""
    return "token" if head.positions == "next_token" else "target"


def parse_budget(text: str) -> float:
    """Bytes a target, of "20", "20B" or "20B/token". Raises ConfigError."""
    found = re.fullmatch(r"([0-9]*\.?[0-9]+) ?(?:B|bytes?)?(?:/(?:token|target))?", text.strip())
    if found is None or float(found[1]) <= 0:
        raise ConfigError(f'--budget: "{text}" is no number of bytes, such as 20B/token')
    return float(found[1])


def choose(pilot: Pilot, budget: float | None, error: float | None) -> Threshold:
    """The threshold of a budget in bytes a target, or of a squared error; of both, the cheaper one that keeps
    to the budget. Raises UserError when they cannot be had.
    """
    found = [] if budget is None else [pilot.threshold_of_bytes(budget)]
    found += [] if error is None else [pilot.threshold_of_error(error)]
    chosen = max(found, key=lambda codec: codec.threshold)
    if len(found) == 2 and chosen is found[0] and found[0] != found[1]:
        raise UserError(
            f"an error of {error:g} takes more than {budget:g} bytes a target: it takes "
            f"{pilot.bytes_per_target(found[1]):.1f}"
        )
    return chosen


def compared(pilot: Pilot, chosen: Threshold, progress: Callable[[str], None]) -> list[Point]:
    """The chosen codec first, then its neighbours, and top-k of as many bytes."""
    near = [min(max(chosen.threshold * factor, 1 / 4096), 0.5) for factor in NEIGHBOURS]
    codecs: list[Codec] = [chosen, *map(Threshold, near)]
    width = np.dtype(id_dtype(pilot.head.size)).itemsize + 2
    codecs.append(TopK(max(1, round(pilot.bytes_per_target(chosen) / width))))
    return _measured(pilot, codecs, progress)


def table(points: Sequence[Point], corpus: Corpus, target: str) -> Table:
    """One line a codec, the chosen one marked."""
    shown = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    shown.add_column("codec", no_wrap=True)
    for name in (f"B/{target}", "entries", "head mass", "error", "angle", "misplaced", "in all"):
        shown.add_column(name, justify="right")
    for number, point in enumerate(points):
        parameters = ", ".join(_parameter(value) for value in list(as_mapping(point.codec).values())[:1])
        found = point.fidelity
        shown.add_row(
            f"{'→' if number == 0 else ' '} {point.codec.kind} {parameters}",
            f"{point.bytes_per_target:.1f}",
            f"{point.entries:.1f}",
            f"{point.captured_mass:.0%}",
            f"{found.error:.2g}",
            f"{found.angle:.1f}°",
            f"{found.calibration:.2%}",
            size(point.bytes_per_target * corpus.targets),
            style="bold" if number == 0 else None,
        )
    return shown


def summary(corpus: Corpus, target: str, price: float | None) -> str:
    """What labelling the whole corpus takes."""
    hours = corpus.seconds / 3600
    cost = "" if price is None else f", {hours * price:,.2f} at {price:g} an hour"
    replicas = "1 replica" if corpus.replicas == 1 else f"{corpus.replicas} replicas"
    took = duration(corpus.seconds / corpus.replicas)
    return (
        f"the corpus has about {count(corpus.targets)} {target}: {took} of the teacher on {replicas} like "
        f"this machine ({hours:,.1f} replica hours{cost})"
    )


@contextmanager
def saved(path: Path) -> Iterator[Axes]:
    """Axes to draw on, saved as a picture whose format is the path's ending.

    Raises UserError when matplotlib is not there, or does not know the ending.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("--plot draws with matplotlib: pip install 'decant-kd[demo]'") from None
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    yield axes
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    try:
        figure.savefig(path)
    except ValueError as error:
        raise UserError(f"--plot {path}: {str(error).partition(chr(10))[0]}") from error


def draw(pilot: Pilot, chosen: Point, path: Path, progress: Callable[[str], None]) -> None:
    """Squared error over bytes, by codec. Raises UserError as `saved`."""
    curves: dict[str, list[Codec]] = {
        "threshold": [Threshold(threshold) for threshold in CURVE_THRESHOLDS],
        "top-k (biased)": [TopK(k) for k in CURVE_KS if k < pilot.head.size],
    }
    with saved(path) as axes:
        for name, codecs in curves.items():
            points = _measured(pilot, codecs, progress)
            axes.plot(
                [point.bytes_per_target for point in points],
                [point.fidelity.error for point in points],
                marker="o",
                label=name,
            )
        axes.plot(
            [chosen.bytes_per_target],
            [chosen.fidelity.error],
            marker="*",
            markersize=14,
            linestyle="",
            color="black",
            label=f"chosen: λ = {chosen.codec.threshold:.4g}"
            if isinstance(chosen.codec, Threshold)
            else "chosen",
        )
        axes.set(
            xscale="log", yscale="log", xlabel="bytes per target", ylabel="squared error of the gradient"
        )


def _measured(pilot: Pilot, codecs: Sequence[Codec], progress: Callable[[str], None]) -> list[Point]:
    points = []
    for number, codec in enumerate(codecs, start=1):
        progress(f"measuring {codec.kind}, {number} of {len(codecs)} …")
        points.append(pilot.measure(codec))
    return points


def _parameter(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
