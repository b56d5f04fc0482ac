"""Small runs of the trainer, and what they leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from student.config import TrainConfig

LM = {"kind": "small_lm", "layers": 1, "width": 16, "heads": 2}


def configured(url: str, output: Path, **changes: Any) -> TrainConfig:
    settings = {
        "store": {"url": url},
        "output": str(output),
        "model": LM,
        "steps": 12,
        "batch_rows": 6,
        "learning_rate": 1e-2,
        "warmup_steps": 2,
        "window_shards": 2,
        "holdout": 0.3,
        "evaluate_every": 5,
        "checkpoint_every": 4,
        "log_every": 3,
        "device": "cpu",
        **changes,
    }
    return TrainConfig.model_validate(settings)


def weights(output: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return load_file(output / "checkpoints" / name / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
