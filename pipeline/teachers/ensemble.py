"""Several teachers as one: the average of their logits, or of their probabilities."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pipeline.targets.errors import UserError
from pipeline.teachers.base import Batch, Output, Teacher, TeacherConfig

if TYPE_CHECKING:
    import torch

    from pipeline.teachers import AnyTeacher


class Ensemble(TeacherConfig):
    """Teachers with the same heads, averaged."""

    kind: Literal["ensemble"] = "ensemble"
    """An average of teachers."""

    members: list[AnyTeacher] = Field(min_length=1)
    """The teachers; each is held in memory."""

    average: Literal["logits", "probabilities"] = "logits"
    """"logits": the mean of the logits (a geometric mean of the distributions, as Ba & Caruana average).
    "probabilities": the mean of the distributions (as Hinton et al. average); its logarithm is the output."""

    def load(self) -> EnsembleTeacher:
        return EnsembleTeacher(self)


class EnsembleTeacher:
    """A loaded Ensemble. Averages in float32, one member after the other."""

    def __init__(self, config: Ensemble) -> None:
        self.average = config.average
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

    def __call__(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        """By head: mean_m z_m, or log mean_m softmax(z_m), float32."""
        import torch

        with torch.inference_mode():
            total: dict[str, torch.Tensor] = {}
            for member in self.members:
                for name, logits in member(batch).items():
                    values = logits.float()
                    if self.average == "probabilities":
                        values = torch.log_softmax(values, dim=-1)
                    if name not in total:
                        total[name] = values.clone() if values is logits else values
                    elif self.average == "probabilities":
                        total[name] = torch.logaddexp(total[name], values.to(total[name].device))
                    else:
                        total[name] += values.to(total[name].device)
            count = len(self.members)
            if self.average == "probabilities":
                return {name: values - math.log(count) for name, values in total.items()}
            return {name: values / count for name, values in total.items()}
