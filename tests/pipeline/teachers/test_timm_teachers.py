"""timm models as teachers, where timm and a torchvision that fits torch are installed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.targets.errors import TeacherError, UserError
from pipeline.teachers import Timm
from pipeline.teachers.base import Output
from tests.pipeline.teachers.tiny import array_batch


def saved(folder: Path, architecture: str, **arguments: Any) -> tuple[Any, str]:
    try:
        import timm
    except Exception as error:  # noqa: BLE001 - torchvision raises whatever it likes
        pytest.skip(f"timm cannot be imported here: {error}")
    torch.manual_seed(0)
    model = timm.create_model(architecture, pretrained=False, num_classes=7, **arguments).eval()
    timm.models.save_for_hf(model, str(folder), model_args=arguments, safe_serialization=True)
    return model, str(folder)


MODELS: list[tuple[str, dict[str, Any]]] = [
    ("resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 16]}),
    ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}),
]


@pytest.mark.parametrize(("architecture", "arguments"), MODELS)
def test_a_timm_model_gives_logits_and_the_features_before_them(
    tmp_path: Path, architecture: str, arguments: dict[str, Any]
) -> None:
    model, path = saved(tmp_path, architecture, **arguments)
    teacher = Timm(path=path, device="cpu").load()
    assert teacher.outputs["logits"] == Output(7, "single")
    byte = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32)).astype(np.uint8)
    mean, std = (np.array(model.pretrained_cfg[name])[:, None, None] for name in ("mean", "std"))
    normal = torch.tensor((byte / 255 - mean) / std, dtype=torch.float32)
    with torch.no_grad():
        expected = model(normal)
        features = model.forward_head(model.forward_features(normal), pre_logits=True)
    for pixels in (byte, normal.numpy()):
        found = teacher(array_batch(pixels))
        torch.testing.assert_close(found["logits"], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found["embedding"], features, rtol=1e-4, atol=1e-4)
    assert teacher.outputs["embedding"] == Output(features.shape[1], "single", vector=True)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    _, path = saved(tmp_path, *MODELS[0][:1], **MODELS[0][1])
    said = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(said | {"architecture": "resnet50"}))
    with pytest.raises(TeacherError, match="does not load as the timm model resnet50"):
        Timm(path=path, device="cpu").load()


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    (tmp_path / "config.json").write_text('{"architecture": "resnet18"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r'pip install "decant-kd\[timm\]"'):
        Timm(path=str(tmp_path), device="cpu").load()
