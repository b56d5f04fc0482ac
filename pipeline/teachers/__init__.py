"""Teachers: one file each. A new one needs a `kind`, `load` and a Teacher, and its name in the union here."""

from typing import Annotated

from pydantic import Field

from pipeline.teachers.base import Batch, Output, Teacher, TeacherConfig
from pipeline.teachers.causal_lm import CausalLM
from pipeline.teachers.classifiers import AudioClassifier, ImageClassifier, SequenceClassifier
from pipeline.teachers.encoder import Encoder
from pipeline.teachers.endpoint import Endpoint
from pipeline.teachers.ensemble import Ensemble
from pipeline.teachers.fake import Fake
from pipeline.teachers.image_text import ImageText
from pipeline.teachers.specialists import Specialist, Specialists
from pipeline.teachers.timm_model import Timm
from pipeline.teachers.torch_callable import TorchCallable
from pipeline.teachers.two_towers import TwoTowers

AnyTeacher = Annotated[
    CausalLM
    | Encoder
    | AudioClassifier
    | ImageClassifier
    | SequenceClassifier
    | Timm
    | TwoTowers
    | ImageText
    | Endpoint
    | TorchCallable
    | Ensemble
    | Specialists
    | Fake,
    Field(discriminator="kind"),
]

for nested in (Ensemble, Specialist, Specialists):
    nested.model_rebuild(_types_namespace={"AnyTeacher": AnyTeacher})

__all__ = [
    "AnyTeacher",
    "AudioClassifier",
    "Batch",
    "CausalLM",
    "Encoder",
    "Endpoint",
    "Ensemble",
    "Fake",
    "ImageClassifier",
    "ImageText",
    "Output",
    "SequenceClassifier",
    "Specialists",
    "Teacher",
    "TeacherConfig",
    "Timm",
    "TorchCallable",
    "TwoTowers",
]
