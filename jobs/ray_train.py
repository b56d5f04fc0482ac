"""A student trained by Ray Train: its workers are ranks of `student.train`, started again when one is lost.

Beside the Ray engine this is the one module that imports Ray. It knows how many workers there are and where
they run; what they do is the configuration's affair, as under torchrun.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.targets.errors import ConfigError, DecantError, UserError
from student.config import TrainConfig
from student.events import Event

RESTARTS = 10
"""How often the workers are started again before training is given up."""

NEWS_SECONDS = 0.5
"""How often the driver looks whether training has ended while no event comes."""


def train_on_ray(config: TrainConfig, workers: int, address: str | None = None) -> Iterator[Event]:
    """Events of `student.train.train` on that many workers, each with a GPU, or for device cpu with a CPU.

    When a worker or its node is lost, all are started again, at most `RESTARTS` times, and go on from the
    last checkpoint: `output` is a path that every node sees. The process's own connection to Ray is used if
    there is one, else the cluster at `address`, else a Ray on this machine. It trains while it is iterated.
    Raises ConfigError where Ray Train is not installed or the cluster has too little, a worker's UserError
    and its kin, and DecantError when training has failed too often.
    """
    # Read when Ray is imported: without a cluster, its processes listen on the loopback interface only.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1" if address else "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray prints it on stdout, whatever log_to_driver says; a second Started tells the same.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "A worker died or was killed")
    try:
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
        from ray.util.queue import Empty, Queue
    except ImportError as error:
        raise ConfigError('--ray-workers needs Ray Train: pip install "decant-kd[ray-train]"') from error
    ours = not ray.is_initialized()
    if ours:
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        try:
            ray.init(address) if address else ray.init("local", include_dashboard=False, **quiet)
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(f"--ray-address: no Ray cluster answers at {address!r}") from error
    try:
        resources = ray.cluster_resources()
        kind = "CPU" if config.device == "cpu" or not resources.get("GPU") else "GPU"
        if resources.get(kind, 0) < workers:
            raise ConfigError(
                f"--ray-workers {workers}: Ray has {resources.get(kind, 0):g} {kind}s, and each worker needs "
                "one: lower it, or give the address of a larger cluster"
            )
        news = Queue(actor_options={"num_cpus": 0})
        trainer = TorchTrainer(
            _worker,
            train_loop_config={
                "config": _anywhere(config).model_dump(mode="json"),
                "folder": os.getcwd(),
                "news": news,
            },
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=kind == "GPU"),
            run_config=RunConfig(
                name="ray-train",
                storage_path=str(Path(config.output).absolute()),
                failure_config=FailureConfig(max_failures=RESTARTS),
            ),
        )
        fit = _Fit(trainer)
        fit.start()
        while True:
            try:
                told = news.get(timeout=NEWS_SECONDS)
            except Empty:
                if not fit.is_alive():
                    break
                continue
            if isinstance(told, UserError):
                raise told
            yield told
        fit.finish()
    finally:
        if ours:
            ray.shutdown()


def _anywhere(config: TrainConfig) -> TrainConfig:
    """The same on a node that lacks the driver's working directory: output and store as absolute paths."""
    assert config.store is not None
    changes: dict[str, Any] = {"output": str(Path(config.output).absolute())}
    if "://" not in config.store.url:
        url = str(Path(config.store.url).absolute())
        changes["store"] = config.store.model_copy(update={"url": url})
    return config.model_copy(update=changes)


def _worker(settings: dict[str, Any]) -> None:
    """One rank. What only a person can mend is told; all else is a failure for Ray, and a restart.

    settings: config of the run; folder: the driver's working directory; news: where events are put.
    """
    from student.train import train

    # Ray puts a worker into a folder of its own, and a person's relative paths (of a tokenizer, of a model,
    # of the cache) begin where the person is.
    with contextlib.suppress(FileNotFoundError):
        os.chdir(settings["folder"])
    try:
        for event in train(TrainConfig.model_validate(settings["config"])):
            settings["news"].put(event)
    except UserError as error:
        settings["news"].put(error)


class _Fit(threading.Thread):
    """Ray's trainer at work: it blocks, and the driver has events to tell meanwhile."""

    def __init__(self, trainer: Any) -> None:
        super().__init__(name="decant-ray-train")
        self._trainer = trainer
        self._error: Exception | None = None

    def run(self) -> None:
        """Train to the end."""
        try:
            self._trainer.fit()
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            self._error = error

    def finish(self) -> None:
        """Waits for the end. Raises DecantError when training has failed."""
        self.join()
        if self._error is not None:
            reason = (str(self._error).strip() or type(self._error).__name__).splitlines()[-1]
            raise DecantError(f"Ray Train gave up: {reason}") from self._error
