"""What more than one room's tests need."""

from __future__ import annotations

import gc
import logging
import os
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says nothing of what is tested, and much of what else the machine does.
settings.register_profile("decant", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("decant")


@pytest.fixture(scope="session")
def s3_options() -> Iterator[dict[str, Any]]:
    """fsspec options of a real S3 server in this process (moto's), with an empty bucket "decant"."""
    s3fs = pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = {
        "endpoint_url": f"http://{host}:{port}",
        "key": "test-key",
        "secret": "test-secret-value",
        "client_kwargs": {"region_name": "us-east-1"},
    }
    s3fs.S3FileSystem(**options).call_s3("create_bucket", Bucket="decant")
    yield options
    server.stop()


@pytest.fixture
def s3_bucket_url(s3_options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """A URL of the test's own on a real S3 server, and the fsspec options to reach it."""
    return f"s3://decant/{uuid.uuid4().hex}", dict(s3_options)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kills",
        type=int,
        default=5,
        help="how often each of the slow kill tests kills what is labelling",
    )


def pytest_collection_finish() -> None:
    """What was imported stays: whoever collects garbage, as labelling does, need not look at it."""
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first: of several processes none is left with a long file while the others have nothing."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One Ray for all tests of the session: 4 CPUs and 2 GPUs that are only counted, never used.

    Where several processes share the tests, it is one for each that gets a file with such tests.
    """
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # loopback; read when Ray is imported
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = pytest.importorskip("ray")
    ray.init(
        "local",
        num_cpus=4,
        num_gpus=2,
        include_dashboard=False,
        object_store_memory=150_000_000,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield
    ray.shutdown()
