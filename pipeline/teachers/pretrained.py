"""Loading a transformers model from a directory: safetensors only, no remote code, no random weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.targets.errors import TeacherError, UserError
from pipeline.teachers.base import TeacherConfig
from pipeline.teachers.devices import device_of
from pipeline.teachers.weights import directory_fingerprint, model_directory

if TYPE_CHECKING:
    import torch


class Pretrained(TeacherConfig):
    """A transformers model directory: config.json and safetensors."""

    path: str
    """The model's directory. Code that it may hold is never run."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What the model computes in; its logits have this type."""

    device: str = "auto"
    """"cpu", "cuda", "cuda:1" …; "auto" is CUDA if there is any, else the CPU."""

    attention: Literal["default", "eager", "sdpa", "flash_attention_2"] = "default"
    """The attention implementation of transformers; by default its own choice for the model."""

    compile: bool = False
    """Whether torch.compile makes kernels for the model's backbone, for batches of any shape: minutes of
    start-up for a replica, then faster on an accelerator."""


def load_pretrained(
    config: Pretrained, auto_class: str, unused: tuple[str, ...] = (), tensor_parallel: int = 1
) -> tuple[Any, torch.device, dict[str, Any]]:
    """The model in evaluation mode on its device, and its description for the spec.

    auto_class: for example "AutoModelForCausalLM". unused: how the names of weights begin that may be absent
    from the files, for nothing of theirs is asked. tensor_parallel: processes of this one's group that the
    model is cut over. Raises UserError when the path is no model directory,
    TeacherError when the model does not load, or when the files lack some of its weights: transformers would
    draw those at random and only warn.
    """
    import torch
    import transformers

    folder = model_directory(config.path)
    device = device_of(config.device)
    given: dict[str, Any] = {}
    if config.attention != "default":
        given["attn_implementation"] = config.attention
    if tensor_parallel > 1:
        from transformers.distributed import DistributedConfig

        given["distributed_config"] = DistributedConfig(tp_size=tensor_parallel)
    try:
        with _no_progress_bar():
            model, info = getattr(transformers, auto_class).from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=getattr(torch, config.dtype),
                output_loading_info=True,
                **given,
            )
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise TeacherError(f"{config.path} does not load as {auto_class}: {reason}") from error
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(unused))
    if missing:
        raise TeacherError(
            f"{config.path} lacks weights that {type(model).__name__} needs ({', '.join(missing[:3])}"
            f"{', …' if len(missing) > 3 else ''}): it was saved as another kind of model"
        )
    try:
        # What is cut over devices is on them already.
        model = (model if tensor_parallel > 1 else model.to(device)).eval().requires_grad_(False)
    except RuntimeError as error:
        raise TeacherError(f"{config.path} does not fit on {device}: {error}") from error
    if config.compile:
        model.base_model.compile(dynamic=True)
    with open(f"{folder}/config.json", "rb") as file:
        kind = json.load(file).get("model_type", "")
    description = {
        "kind": getattr(config, "kind", ""),
        "model_type": kind,
        "dtype": config.dtype,
        "fingerprint": directory_fingerprint(folder),
    }
    return model, model.device, description


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """transformers' bar would be drawn over the job's own progress view, once a replica."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def check_tokens(model: Any, tokens: npt.NDArray[Any]) -> None:
    """Raises UserError for tokens [views, L] that the model has no positions or no embeddings for."""
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and tokens.shape[1] > longest:
        raise UserError(
            f"the teacher has {longest} positions and a view {tokens.shape[1]} tokens: lower views.length"
        )
    known = model.get_input_embeddings().weight.shape[0]
    if int(np.max(tokens)) >= known:
        raise UserError(
            f"token {np.max(tokens)} is beyond the {known} that the teacher has: give views.tokenizer its own"
        )
