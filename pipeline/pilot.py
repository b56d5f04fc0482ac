"""A pilot of a head of logits: what codecs of distributions cost, and what a student would feel of them.

It knows distributions and their codecs, and finds the threshold of a budget. It writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.answers import Answers, stored_bytes
from pipeline.fidelity import Comparison, Fidelity, Floats, Reference, estimate
from pipeline.inference import Answer
from pipeline.targets.codecs import Codec, Threshold
from pipeline.targets.decoded import DenseTargets, Targets
from pipeline.targets.errors import UserError
from pipeline.targets.rows import Rows

if TYPE_CHECKING:
    from pipeline.job import LabelJob

SMALLEST, LARGEST, HALVINGS = 1 / 4096, 0.5, 10
"""Thresholds that one is searched between, and how often the interval is halved, on a logarithmic scale."""


@dataclass(frozen=True)
class Point:
    """A codec on a pilot's targets.

    bytes_per_target: of a Parquet shard's columns, keys and inputs among them; head_bytes: of the head's
    alone. entries, captured_mass: as the codec counts them.
    """

    codec: Codec
    bytes_per_target: float
    head_bytes: float
    entries: float
    captured_mass: float
    fidelity: Fidelity


class Pilot(Answers):
    """What the teacher answers to some of a job's corpus, as distributions."""

    def __init__(self, job: LabelJob, targets: int, head: str | None = None) -> None:
        """Ask for so many targets. head: of logits, the only one if None. Raises as `Answers` does."""
        super().__init__(job, head)
        self.ask(targets)
        total = sum(self._p(answer).sum(axis=0, dtype=np.float64) for answer in self._answers)
        self._mean = np.asarray(total) / self.targets
        self._sums = [Reference.of(self._p(answer), self._mean) for answer in self._answers]

    def measure(self, codec: Codec) -> Point:
        """What the codec costs and keeps. Raises ValueError when it cannot hold the head."""
        comparison, parts = Comparison(self._mean), []
        for answer, sums in zip(self._answers, self._sums, strict=True):
            parts.append(self._rows(answer, codec))
            comparison.add(self._p(answer), sums, parts[-1].decode(self.head.name))
        rows = Rows.concatenate(parts)
        statistics = codec.statistics(rows.heads[self.head.name], self.head.size)
        return Point(
            codec,
            stored_bytes(rows) / self.targets,
            stored_bytes(rows, f"{self.head.name}.") / self.targets,
            statistics["entries"],
            statistics["captured_mass"],
            comparison.fidelity(),
        )

    def compare(self, encode: Callable[[torch.Tensor], Targets]) -> Fidelity:
        """What any function from logits, float32 [n, V], to targets keeps."""
        comparison = Comparison(self._mean)
        for answer, sums in zip(self._answers, self._sums, strict=True):
            dense = self._rows(answer, self.head.codec).decode(self.head.name)
            assert isinstance(dense, DenseTargets)
            comparison.add(estimate(dense, self._mean), sums, encode(torch.from_numpy(dense.logits)))
        return comparison.fidelity()

    def threshold_of_bytes(self, most: float) -> Threshold:
        """The smallest threshold whose targets take at most so many bytes. Raises UserError if none does."""
        least = self.bytes_per_target(Threshold(LARGEST))
        if least > most:
            raise UserError(
                f"{most:g} bytes a target cannot be had: the largest threshold takes {least:.1f}, keys and "
                "inputs among them: allow more"
            )
        return _largest(lambda threshold: self.bytes_per_target(Threshold(threshold)) > most, above=True)

    def threshold_of_error(self, most: float) -> Threshold:
        """The largest threshold of at most that squared error. Raises UserError if none is as good."""
        best = self.measure(Threshold(SMALLEST)).fidelity.error
        if best > most:
            raise UserError(
                f"a squared error of {most:g} cannot be had: the smallest threshold has {best:.2g}: allow "
                "more, or take the dense codec"
            )
        return _largest(
            lambda threshold: self.measure(Threshold(threshold)).fidelity.error <= most, above=False
        )

    def _p(self, answer: Answer) -> Floats:
        """The teacher's distributions of an answer's targets, [n, V]."""
        return estimate(self._rows(answer, self.head.codec).decode(self.head.name), np.zeros(0))


def _largest(holds: Callable[[float], bool], above: bool) -> Threshold:
    """Where `holds`, true for small thresholds, turns false: the last one tried before, or (above) after."""
    low, high = math.log(SMALLEST), math.log(LARGEST)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(math.exp(middle)) else (low, middle)
    return Threshold(min(max(math.exp(high if above else low), SMALLEST), LARGEST))
