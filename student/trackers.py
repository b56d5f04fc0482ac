"""TensorBoard, MLflow and Weights & Biases, each told a run's numbers. Knows nothing of what they mean.

A tracker is made from the configuration, the run's directory and the step it goes on from (0: a new run); its
library is imported then. Raises ConfigError when that is not installed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from pipeline.targets.errors import ConfigError
from student.config import TrainConfig


class Tracker(Protocol):
    """Whoever wants to know."""

    def tell(self, numbers: Mapping[str, float], step: int) -> None:
        """Numbers by name, of after that step."""
        ...

    def close(self, failed: bool) -> None:
        """Nothing more comes. failed: the run has not come to its end."""
        ...


class TensorBoard:
    """Event files in `output`/tensorboard."""

    def __init__(self, config: TrainConfig, directory: Path, step: int) -> None:
        writer = _imported("torch.utils.tensorboard", "tensorboard").SummaryWriter
        self._writer = writer(str(directory / "tensorboard"), purge_step=step + 1 if step else None)

    def tell(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self, failed: bool) -> None:
        self._writer.close()


class MLflow:
    """A run of the experiment that MLFLOW_EXPERIMENT_NAME says, where MLFLOW_TRACKING_URI says.

    Its id is kept in `output`/mlflow-run, and a run that goes on goes on in it.
    """

    def __init__(self, config: TrainConfig, directory: Path, step: int) -> None:
        self._mlflow = _imported("mlflow", "mlflow")
        kept = directory / "mlflow-run"
        known = kept.read_text() if step and kept.exists() else None
        run = self._mlflow.start_run(run_id=known, run_name=directory.name, nested=True)
        self._id = run.info.run_id
        kept.write_text(self._id)
        if known is None:
            self._mlflow.log_dict(_public(config), "train.json")

    def tell(self, numbers: Mapping[str, float], step: int) -> None:
        self._mlflow.log_metrics(dict(numbers), step=step, run_id=self._id)

    def close(self, failed: bool) -> None:
        self._mlflow.end_run("FAILED" if failed else "FINISHED")


class WeightsAndBiases:
    """A run of the project that WANDB_PROJECT says. Its id is kept in `output`/wandb-run, as MLflow's."""

    def __init__(self, config: TrainConfig, directory: Path, step: int) -> None:
        wandb = _imported("wandb", "wandb")
        kept = directory / "wandb-run"
        known = kept.read_text() if step and kept.exists() else None
        self._run = wandb.init(
            id=known,
            name=directory.name,
            dir=str(directory),
            config=_public(config),
            resume="allow",
            reinit="create_new",
        )
        kept.write_text(self._run.id)

    def tell(self, numbers: Mapping[str, float], step: int) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


MAKERS: dict[str, Callable[[TrainConfig, Path, int], Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WeightsAndBiases,
}
"""By the name in `trackers`."""


def _imported(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f'trackers: {extra} needs its package: pip install "decant-kd[{extra}]"') from error


def _public(config: TrainConfig) -> dict[str, Any]:
    """Without the store's options: they may hold credentials."""
    return config.model_dump(mode="json", exclude={"store": {"options"}})
