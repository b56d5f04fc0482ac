"""Several teachers as one: the average of their logits, or of their probabilities."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pipeline.targets.errors import UserError
from pipeline.teachers.base import Batch, Output, Teacher, TeacherConfig
from pipeline.teachers.logits import Average, Logits, Mean, as_logits

if TYPE_CHECKING:
    from pipeline.teachers import AnyTeacher


class Ensemble(TeacherConfig):
    """Teachers with the same heads, averaged."""

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
        for i, member in enumerate(self.members[1:], start=2):
            if dict(member.outputs) != self.outputs:
                raise UserError(
                    f"member {i} of the ensemble has the heads {dict(member.outputs)}, "
                    f"the first has {self.outputs}: only like heads can be averaged"
                )
        described = [dict(member.description) for member in self.members]
        text = json.dumps([self.average, described], sort_keys=True)
        self.description: dict[str, Any] = {
            "kind": config.kind,
            "average": self.average,
            "members": described,
            "fingerprint": hashlib.sha256(text.encode()).hexdigest(),
        }

    def __call__(self, batch: Batch) -> Mapping[str, Logits]:
        """By head the mean of the members' logits, or of their probabilities: see `Mean`."""
        answers = [member(batch) for member in self.members]
        return {
            name: Mean([as_logits(answer[name]) for answer in answers], self.average) for name in self.outputs
        }
