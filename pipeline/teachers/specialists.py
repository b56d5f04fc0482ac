"""A generalist and specialists for classes that it confuses, as one teacher (Hinton et al. 2015, section 5).

A specialist knows its own classes and calls all others one: the dustbin, its last class. It knows how their
distributions are put together; how they were trained, and how the groups were found, it does not.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveInt, field_validator

from pipeline.config import Config
from pipeline.targets.errors import UserError
from pipeline.teachers.base import Batch, Output, Teacher, TeacherConfig
from pipeline.teachers.logits import as_logits

if TYPE_CHECKING:
    import torch

    from pipeline.teachers import AnyTeacher

SETTLED, ROUNDS = 1e-9, 1000
"""A view's fit ends when none of its probabilities moves by more, or after so many rounds."""


class Specialist(Config):
    """A teacher of some classes."""

    teacher: AnyTeacher
    """Its head "logits" has one class more than `classes`: the last is the dustbin."""

    classes: list[int] = Field(min_length=1)
    """The generalist's numbers of its classes, in its own order."""

    oversampled: float = Field(default=1.0, gt=0)
    """How many times more often its classes were seen in its training than they occur: as in the paper, the
    dustbin's logit is raised by the logarithm of this."""

    @field_validator("classes")
    @classmethod
    def _distinct(cls, classes: list[int]) -> list[int]:
        if len(set(classes)) < len(classes):
            raise ValueError("a class stands there twice")
        return classes


class Specialists(TeacherConfig):
    """A generalist of all classes and specialists of some. Head: "logits", log-probabilities of all classes;
    beside it "generalist" and "specialist_0", "specialist_1", …, what each says by itself.

    Of a view, those specialists are heard that know one of its likeliest classes. The distribution q is the
    one that minimises KL(p_g ‖ q) + Σ_m KL(p_m ‖ q), where for a specialist all of q's other classes are one.
    """

    kind: Literal["specialists"] = "specialists"
    """A generalist and specialists."""

    generalist: AnyTeacher
    """The teacher of all classes, by its head "logits"."""

    specialists: list[Specialist] = Field(min_length=1)
    """The specialists; each is held in memory and asked of every view."""

    likeliest: PositiveInt = 1
    """How many of the generalist's likeliest classes decide which specialists are heard (n in the paper)."""

    @property
    def members(self) -> list[AnyTeacher]:
        """All teachers."""
        return [self.generalist, *(specialist.teacher for specialist in self.specialists)]

    def load(self) -> SpecialistsTeacher:
        return SpecialistsTeacher(self)


class SpecialistsTeacher:
    """A loaded Specialists. Puts together in float64, on the generalist's device."""

    def __init__(self, config: Specialists) -> None:
        self.config = config
        self.generalist: Teacher = config.generalist.load()
        self.specialists: list[Teacher] = [specialist.teacher.load() for specialist in config.specialists]
        size = _head(self.generalist, "the generalist").size
        self.outputs = {name: Output(size, "single") for name in ("logits", "generalist")}
        for i, (teacher, said) in enumerate(zip(self.specialists, config.specialists, strict=True)):
            found = _head(teacher, f"specialist {i}").size
            if found != len(said.classes) + 1:
                raise UserError(
                    f"specialist {i} has {found} classes, and with the dustbin there should be "
                    f"{len(said.classes) + 1}: correct teacher.specialists.{i}.classes"
                )
            if min(said.classes) < 0 or max(said.classes) >= size:
                raise UserError(
                    f"teacher.specialists.{i}.classes has a class that is none of the generalist's {size}"
                )
            self.outputs[f"specialist_{i}"] = Output(found, "single")
        described = {
            "likeliest": config.likeliest,
            "generalist": dict(self.generalist.description),
            "specialists": [
                {"classes": said.classes, "oversampled": said.oversampled, **teacher.description}
                for teacher, said in zip(self.specialists, config.specialists, strict=True)
            ],
        }
        text = json.dumps(described, sort_keys=True)
        self.description: dict[str, Any] = {
            "kind": config.kind,
            **described,
            "fingerprint": hashlib.sha256(text.encode()).hexdigest(),
        }

    def __call__(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        """By head: log q [views, V], and the members' own logits, with dustbins raised if that is asked."""
        import torch

        own = as_logits(self.generalist(batch)["logits"]).whole()
        said = []
        for teacher, specialist in zip(self.specialists, self.config.specialists, strict=True):
            logits = as_logits(teacher(batch)["logits"]).whole().to(own.device, torch.float64)
            logits[:, -1] += math.log(specialist.oversampled)
            said.append(logits)
        classes = [specialist.classes for specialist in self.config.specialists]
        log_q = combine(own.double(), said, classes, self.config.likeliest)
        members = {f"specialist_{i}": logits.float() for i, logits in enumerate(said)}
        return {"logits": log_q.float(), "generalist": own, **members}


def combine(
    generalist: torch.Tensor,
    specialists: Sequence[torch.Tensor],
    classes: Sequence[Sequence[int]],
    likeliest: int,
) -> torch.Tensor:
    """log q, float64 [N, V]: the minimum over q of KL(p_g ‖ q) + Σ KL(p_m ‖ q) over the specialists heard.

    generalist: logits, float64 [N, V]; specialists: logits, float64 [N, |classes| + 1], the last of all other
    classes together. The paper descends the gradient in logits. The same sum is, but for a constant, minus
    the likelihood of observations of which some say only that a class is one of many, so expectation
    maximisation reaches its minimum: each round a dustbin's mass is laid over its classes as q has it, and q
    becomes the mean of all. The sum is convex in q and never grows, and no step size is chosen. Rows that are
    not finite stay so.
    """
    import torch

    p = torch.softmax(generalist, dim=1)
    chosen = torch.zeros_like(p, dtype=torch.bool)
    chosen.scatter_(1, p.nan_to_num().topk(min(likeliest, p.shape[1]), dim=1).indices, True)
    total = p.clone()
    dustbins: list[tuple[torch.Tensor, torch.Tensor]] = []
    for logits, known in zip(specialists, classes, strict=True):
        inside = torch.zeros(p.shape[1], dtype=torch.bool, device=p.device)
        inside[list(known)] = True
        heard = chosen[:, inside].any(dim=1, keepdim=True)
        told = torch.softmax(logits, dim=1) * heard
        total[:, list(known)] += told[:, :-1]
        dustbins.append((told[:, -1:], ~inside))
    q, moving = p, torch.ones_like(p[:, :1], dtype=torch.bool)
    for _ in range(ROUNDS):
        expected = total.clone()
        for mass, outside in dustbins:
            share = q * outside
            expected += mass * share / share.sum(dim=1, keepdim=True).clamp_min(torch.finfo(q.dtype).tiny)
        new = torch.where(moving, expected / expected.sum(dim=1, keepdim=True), q)
        # Row by row, so that no view's result hangs on the others in its batch.
        moving, q = (new - q).abs().amax(dim=1, keepdim=True) > SETTLED, new
        if not bool(moving.any()):
            break
    return q.log()


def _head(teacher: Teacher, who: str) -> Output:
    output = teacher.outputs.get("logits")
    if output is None or output.positions != "single" or output.likeliest is not None:
        raise UserError(
            f'{who} has no head "logits" with one distribution a view: only such can be specialists'
        )
    return output
