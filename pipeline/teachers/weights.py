"""What a teacher's weights are called: fingerprints of model directories and of modules."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from pipeline.targets.errors import UserError

if TYPE_CHECKING:
    import torch

DESCRIBING = ("config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json")


def model_directory(path: str) -> str:
    """The absolute path of a transformers model directory. Raises UserError when it is none."""
    folder = os.path.abspath(os.path.expanduser(path))
    if not os.path.isfile(os.path.join(folder, "config.json")):
        raise UserError(f"{path} is no model directory: it has no config.json")
    if not weight_files(folder):
        raise UserError(
            f"{path} has no *.safetensors: save the model with safetensors (nothing is unpickled)"
        )
    return folder


def weight_files(folder: str) -> list[str]:
    """Names of the safetensors files, sorted."""
    return sorted(name for name in os.listdir(folder) if name.endswith(".safetensors"))


def directory_fingerprint(folder: str) -> str:
    """SHA-256 over names and contents of the configuration and the weights, hexadecimal."""
    digest = hashlib.sha256()
    for name in [*DESCRIBING, *weight_files(folder)]:
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            with open(path, "rb") as file:
                digest.update(f"{name}:{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def module_fingerprint(module: torch.nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of the module's state, hexadecimal."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if not isinstance(tensor, torch.Tensor):
            digest.update(f"{name}:{tensor!r}\n".encode())
            continue
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
