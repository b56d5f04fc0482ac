"""An image model of timm as a teacher: class logits, and the features that they are made of."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pipeline.targets.errors import TeacherError, UserError
from pipeline.teachers.base import Batch, Output, TeacherConfig
from pipeline.teachers.devices import device_of
from pipeline.teachers.inputs import Layout, Pixels, Scaling
from pipeline.teachers.weights import directory_fingerprint, model_directory, weight_files

if TYPE_CHECKING:
    import torch


class Timm(TeacherConfig):
    """A timm model from a directory as timm saves them for the hub: config.json and one safetensors file.

    Heads: "logits" and, before the classifier, "embedding"; input: "pixels", or the only array. float32
    arrays go to the model as they are; uint8 ones are divided by 255 and normalised as config.json says.
    Sizes are never changed.
    """

    kind: Literal["timm"] = "timm"
    """An image model of timm."""

    path: str
    """The model's directory."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What the model computes in."""

    device: str = "auto"
    """"cpu", "cuda", "cuda:1" …; "auto" is CUDA if there is any, else the CPU."""

    layout: Layout = "channels_first"
    """Whether an array of the corpus is [C, H, W] or [H, W, C]."""

    def load(self) -> TimmTeacher:
        return TimmTeacher(self)


class TimmTeacher:
    """A loaded Timm. A model that was saved without a classifier has the head "embedding" alone."""

    def __init__(self, config: Timm) -> None:
        import torch

        folder = model_directory(config.path)
        with open(os.path.join(folder, "config.json"), "rb") as file:
            said = json.load(file)
        self.device, dtype = device_of(config.device), getattr(torch, config.dtype)
        self.model = _load(folder, said).to(self.device, dtype).eval().requires_grad_(False)
        self.pixels = Pixels(_scaling(said.get("pretrained_cfg", said)), config.layout, self.device, dtype)
        self.outputs = {"embedding": Output(int(self.model.head_hidden_size), "single", vector=True)}
        if int(self.model.num_classes) > 0:
            self.outputs["logits"] = Output(int(self.model.num_classes), "single")
        self.description = {
            "kind": config.kind,
            "model_type": said["architecture"],
            "dtype": config.dtype,
            "layout": config.layout,
            "fingerprint": directory_fingerprint(folder),
        }

    def __call__(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        """Vectors [views, D] and logits [views, V] in the model's dtype."""
        import torch

        with torch.inference_mode():
            features = self.model.forward_features(self.pixels.of(batch))
            answers = {"embedding": self.model.forward_head(features, pre_logits=True)}
            if "logits" in self.outputs:
                answers["logits"] = self.model.forward_head(features)
            return answers


def _load(folder: str, said: Mapping[str, Any]) -> Any:
    try:
        import timm
    except Exception as error:
        raise UserError(
            f"teachers of the kind timm need timm, with a torchvision that fits torch ({error}): pip install "
            '"decant-kd[timm]"'
        ) from error
    from safetensors.torch import load_file

    files = weight_files(folder)
    if "architecture" not in said or len(files) != 1:
        raise UserError(
            f"{folder} is no timm model: it needs an architecture in config.json and one safetensors file"
        )
    made = dict(said.get("model_args", {}))
    if "num_classes" in said:
        made["num_classes"] = said["num_classes"]
    try:
        model = timm.create_model(said["architecture"], pretrained=False, **made)
        model.load_state_dict(load_file(os.path.join(folder, files[0])))
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise TeacherError(
            f"{folder} does not load as the timm model {said['architecture']}: {reason}"
        ) from error
    return model


def _scaling(said: Mapping[str, Any]) -> Scaling:
    return 1 / 255, list(said.get("mean", [0.0])), list(said.get("std", [1.0]))
