"""Who is told of a run: the libraries themselves, where they are installed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.targets.errors import ConfigError
from student.config import TrainConfig
from student.trackers import MAKERS
from tests.student.runs import configured


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    store = {"url": "store", "options": {"secret": "not-for-others"}}
    (tmp_path / "run").mkdir()
    return configured("store", tmp_path / "run", store=store)


@pytest.mark.parametrize(
    ("name", "module"),
    [("tensorboard", "torch.utils.tensorboard"), ("mlflow", "mlflow"), ("wandb", "wandb")],
)
def test_one_that_is_not_installed_is_named_with_its_extra(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, name: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf'{name} needs its package: pip install "decant-kd\[{name}\]"'):
        MAKERS[name](config, Path(config.output), 0)


def told_in_two_parts(name: str, config: TrainConfig) -> None:
    """Steps 1 and 2 of a run that fails, and then 3 by one that goes on."""
    for step, steps in ((0, (1, 2)), (2, (3,))):
        tracker = MAKERS[name](config, Path(config.output), step)
        for number in steps:
            tracker.tell({"step/loss": number / 2}, number)
        tracker.close(failed=step == 0)


def test_mlflow_has_one_run_with_all_steps_and_no_credentials(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow: Any = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a database would need SQLAlchemy
    monkeypatch.chdir(tmp_path)
    statuses: list[str] = []
    end = mlflow.end_run
    monkeypatch.setattr(mlflow, "end_run", lambda status: (statuses.append(status), end(status)))
    told_in_two_parts("mlflow", config)
    assert statuses == ["FAILED", "FINISHED"]
    run = (Path(config.output) / "mlflow-run").read_text()
    assert mlflow.MlflowClient().get_run(run).info.status == "FINISHED"
    history = mlflow.MlflowClient().get_metric_history(run, "step/loss")
    assert [(point.step, point.value) for point in history] == [(1, 0.5), (2, 1.0), (3, 1.5)]
    assert not any(b"not-for-others" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_weights_and_biases_has_one_run_and_no_credentials(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    told_in_two_parts("wandb", config)
    run = (Path(config.output) / "wandb-run").read_text()
    files = list((Path(config.output) / "wandb").rglob("*.wandb"))
    assert files
    assert all(run in path.name for path in files)
    assert not any(b"not-for-others" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
