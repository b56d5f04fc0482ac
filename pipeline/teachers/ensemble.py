"""Several teachers as one: the average of their logits, or of their probabilities."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pipeline.targets.errors import UserError
from pipeline.teachers.base import Batch, Output, Teacher, TeacherConfig
from pipeline.teachers.logits import Average, Logits, Mean, as_logits

if TYPE_CHECKING:
    from pipeline.teachers import AnyTeacher


class Ensemble(TeacherConfig):
    """Teachers with the same heads, averaged. Logits of next tokens may differ in what pads them."""

    kind: Literal["ensemble"] = "ensemble"
    """An average of teachers."""

    members: list[AnyTeacher] = Field(min_length=1)
    """The teachers; each is held in memory."""

    average: Average = "logits"
    """"logits": the mean of the logits (a geometric mean of the distributions, as Ba & Caruana average).
    "probabilities": the mean of the distributions (as Hinton et al. average); its logarithm is the output."""

    def load(self) -> EnsembleTeacher:
        return EnsembleTeacher(self)


class EnsembleTeacher:
    """A loaded Ensemble. Averages in float32; the members compute one after the other."""

    def __init__(self, config: Ensemble) -> None:
        self.average: Average = config.average
        self.members: list[Teacher] = [member.load() for member in config.members]
        self.outputs: dict[str, Output] = dict(self.members[0].outputs)
        for i, member in enumerate(self.members, start=1):
            if any(output.likeliest is not None for output in member.outputs.values()):
                raise UserError(
                    f"member {i} of the ensemble tells its likeliest classes only, and what it says of the "
                    "others cannot be averaged: label with it alone"
                )
        for i, member in enumerate(self.members[1:], start=2):
            if not _alike(member.outputs, self.members[0].outputs):
                raise UserError(
                    f"member {i} of the ensemble has the heads {dict(member.outputs)}, "
                    f"the first has {dict(self.members[0].outputs)}: only like heads can be averaged"
                )
            self.outputs = {
                name: _common(output, member.outputs[name]) for name, output in self.outputs.items()
            }
        described = [dict(member.description) for member in self.members]
        text = json.dumps([self.average, described], sort_keys=True)
        self.description: dict[str, Any] = {
            "kind": config.kind,
            "average": self.average,
            "members": described,
            "fingerprint": hashlib.sha256(text.encode()).hexdigest(),
        }

    def __call__(self, batch: Batch) -> Mapping[str, Logits]:
        """By head the mean of the members' logits, or of their probabilities, of the classes that all have:
        see `Mean`.
        """
        answers = [member(batch) for member in self.members]
        return {
            name: Mean([as_logits(answer[name]).first(output.size) for answer in answers], self.average)
            for name, output in self.outputs.items()
        }


def _alike(ours: Mapping[str, Output], theirs: Mapping[str, Output]) -> bool:
    """Whether the heads can be averaged. Language models of one tokenizer may pad it differently."""
    return ours.keys() == theirs.keys() and all(
        output.positions == theirs[name].positions
        and (output.size == theirs[name].size or output.positions == "next_token")
        for name, output in ours.items()
    )


def _common(a: Output, b: Output) -> Output:
    """Of two like heads, what both have."""
    padded = a.padded or b.padded or a.size != b.size
    return replace(a, size=min(a.size, b.size), padded=padded)
