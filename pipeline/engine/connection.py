"""A Ray to run on: the one this process is connected to, a cluster's, or one started here.

It knows addresses, and how much of a machine a pool needs. What runs on it, it does not know.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import threading
from typing import TYPE_CHECKING, Any

from pipeline.engine.base import sentence
from pipeline.targets.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.job import LabelConfig

CONNECT_SECONDS = 10.0
"""How long a cluster may take to accept a connection."""

OBJECT_STORE_BYTES = 100_000_000
"""Of a Ray started here. Units and commit records are small; of more, `connect` is told."""


def connect(config: LabelConfig, object_bytes: int = 0) -> bool:
    """Have Ray. True if it was not there before and must be left by `ray.shutdown`.

    object_bytes: that go through its object store at a time. Raises ConfigError.
    """
    if config.address is None:
        # Read when Ray is imported: its processes listen on the loopback interface only.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray prints it on stdout, whatever log_to_driver says; ReplicaLost tells the same.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "A worker died or was killed")
    import ray

    if ray.is_initialized():
        return False
    # Ray puts its own handler of SIGTERM in place, which ends the driver at once. What a signal means is for
    # whoever runs an engine to say.
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if config.address is not None:
            try:
                _knock(config.address)
                ray.init(config.address, **quiet)
            except (OSError, ValueError, RuntimeError) as error:
                raise ConfigError(
                    f"label.address: no Ray cluster answers at {config.address!r} ({sentence(error)})"
                ) from error
            return True
        wanted, beside = config.replicas, config.preprocess
        cpus = wanted.cpus * wanted.max + beside.cpus * beside.actors
        ray.init(
            "local",
            num_cpus=max(os.cpu_count() or 1, math.ceil(cpus)),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES + object_bytes,
            **quiet,
        )
        gpus = ray.cluster_resources().get("GPU", 0.0)
        if wanted.gpus * wanted.min > gpus:
            ray.shutdown()
            raise ConfigError(
                f"label.replicas: {wanted.min} replicas with {wanted.gpus:g} GPUs each do not fit on this "
                f"machine, which has {gpus:g}: lower gpus or min, or give the address of a cluster"
            )
        return True
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                if handler is not None:
                    signal.signal(number, handler)


def _knock(address: str) -> None:
    """Raises OSError when nothing listens at host:port; Ray itself would go on trying for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
