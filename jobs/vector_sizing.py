"""A codec for an embedding head from a budget: what a pilot found, as a table and as a picture.

It knows pilots of vectors and how their points are shown. Nothing is written but the picture.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from jobs.sizing import Corpus, Sized, Wish, called, saved
from jobs.terminal import size
from pipeline.targets.codecs import Codebooks, Codec, Embedding
from pipeline.targets.errors import UserError

if TYPE_CHECKING:
    from pipeline.job import LabelJob
    from pipeline.vectors import VectorPilot, VectorPoint

BYTES = (8, 16, 32, 64)
"""Of the codebooks that are tried, where they divide the features."""


def find(job: LabelJob, wish: Wish, progress: Callable[[str], None]) -> Sized:
    """The codec of an embedding head. Raises as `choose`."""
    from pipeline.vectors import VectorPilot

    with VectorPilot(job, wish.head) as pilot:
        pilot.ask(wish.targets)
        points = compared(pilot, job.store.seed, progress)
        chosen = choose(points, wish.budget, wish.error)
        progress("counting the corpus …")
        corpus = Corpus.of(job, pilot)
        if wish.plot is not None:
            draw(points, chosen, wish.plot)
        shown = table(points, chosen, corpus)
        return Sized(shown, corpus, called(pilot.head), setting(wish.head, chosen.codec))


def compared(pilot: VectorPilot, seed: int, progress: Callable[[str], None]) -> list[VectorPoint]:
    """Float16, int8 and codebooks, most bytes first. seed: of the codebooks."""
    points = [pilot.measure(Embedding("float16")), pilot.measure(Embedding("int8"))]
    for count in reversed(BYTES):
        if pilot.head.size % count == 0:
            progress(f"learning codebooks of {count} bytes …")
            points.append(pilot.measure(pilot.train(count, seed)))
    return sorted(points, key=lambda point: -point.bytes)


def choose(points: Sequence[VectorPoint], budget: float | None, error: float | None) -> VectorPoint:
    """Of a budget in bytes a vector the nearest to the teacher, of an error (1 - cosine) the smallest.

    Raises UserError when none is within both.
    """
    good = [
        point
        for point in points
        if (budget is None or point.bytes <= budget) and (error is None or 1 - point.cosine <= error)
    ]
    if not good:
        offered = ", ".join(f"{point.bytes:g} bytes at {1 - point.cosine:.2g}" for point in points)
        raise UserError(f"no codec is within the budget and the error; there are {offered}: allow more")
    return max(good, key=lambda point: (point.cosine if error is None else -point.bytes, -point.bytes))


def table(points: Sequence[VectorPoint], chosen: VectorPoint, corpus: Corpus) -> Table:
    """One line a codec, the chosen one marked."""
    shown = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    shown.add_column("codec", no_wrap=True)
    for name in ("bytes", "cosine", "95 % above", "in the shard", "in all"):
        shown.add_column(name, justify="right")
    for point in points:
        shown.add_row(
            f"{'→' if point is chosen else ' '} {_name(point.codec)}",
            f"{point.bytes:g}",
            f"{point.cosine:.4f}",
            f"{point.low:.4f}",
            f"{point.bytes_per_target:.1f}",
            size(point.bytes_per_target * corpus.targets),
            style="bold" if point is chosen else None,
        )
    return shown


def setting(head: str, codec: Codec) -> str:
    """What chooses the codec on a command line."""
    said = {"kind": codec.kind} | (
        {"bytes": codec.count} if isinstance(codec, Codebooks) else codec.to_json()
    )
    return f"'store.heads.{head}={json.dumps(said)}'"


def draw(points: Sequence[VectorPoint], chosen: VectorPoint, path: Path) -> None:
    """1 - cosine over bytes, as a picture whose format is the path's ending. Raises UserError as `saved`."""
    with saved(path) as axes:
        books = [point for point in points if isinstance(point.codec, Codebooks)]
        others = [point for point in points if point not in books]
        for name, curve in (("codebooks", books), ("embedding", others)):
            axes.plot([p.bytes for p in curve], [1 - p.cosine for p in curve], marker="o", label=name)
        axes.plot(
            [chosen.bytes],
            [1 - chosen.cosine],
            marker="*",
            markersize=14,
            linestyle="",
            color="black",
            label=f"chosen: {_name(chosen.codec)}",
        )
        axes.set(xscale="log", yscale="log", xlabel="bytes per vector", ylabel="1 - cosine to the teacher's")


def _name(codec: Codec) -> str:
    if isinstance(codec, Codebooks):
        return f"codebooks {codec.count}"
    return f"embedding {codec.to_json()['dtype']}"
