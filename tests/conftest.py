"""What more than one room's tests need."""

from __future__ import annotations

import argparse
import copy
import gc
import json
import logging
import os
import subprocess
import textwrap
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.byte_level import byte_level
from tests.s3.ceph import CEPH, Ceph, ceph_port
from tests.s3.proxy import Proxy, proxied

# How long an example takes says nothing of what is tested, and much of what else the machine does.
settings.register_profile("decant", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("decant")


Place = tuple[str, dict[str, Any]]


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


@pytest.fixture(scope="session")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ceph]:
    """A running Ceph, empty at the start of the session but for a bucket "decant"."""
    s3fs = pytest.importorskip("s3fs")
    installed = subprocess.run([CEPH, "install"], capture_output=True, text=True, check=False)
    if installed.returncode:
        pytest.skip(installed.stderr.strip())
    server = Ceph(tmp_path_factory.mktemp("ceph"), ceph_port())
    server.up()
    s3fs.S3FileSystem(**server.options).call_s3("create_bucket", Bucket="decant")
    yield server
    server.kill()


@pytest.fixture
def ceph_bucket_url(ceph: Ceph) -> tuple[str, dict[str, Any]]:
    """A URL of the test's own on Ceph's S3 server, and the fsspec options to reach it."""
    return f"s3://decant/{uuid.uuid4().hex}", ceph.options


@pytest.fixture(params=["moto", pytest.param("ceph", marks=pytest.mark.ceph)])
def faulty(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Proxy, Place, Place]]:
    """A proxy before an S3 server, and a URL with options that leads through it and one that does not.

    What botocore waits before it asks again is shortened, and so is what it waits for an answer.
    """
    name = "s3_bucket_url" if request.param == "moto" else "ceph_bucket_url"
    url, options = request.getfixturevalue(name)
    backoff = pytest.importorskip("botocore.retries.standard").ExponentialBackoff
    monkeypatch.setattr(backoff, "delay_amount", lambda self, context: 0.01)
    with proxied(options["endpoint_url"]) as proxy:
        through = {**options, "endpoint_url": proxy.endpoint, "config_kwargs": {"read_timeout": 1}}
        yield proxy, (url, through), (url, options)


TIERS = {"ceph": "need Ceph's S3 server", "nodes": "start Ray's nodes by the script for clusters"}
"""Tests that run only where their option asks for them, by marker."""


def pytest_addoption(parser: pytest.Parser) -> None:
    for tier, what in TIERS.items():
        parser.addoption(f"--{tier}", action="store_true", help=f"run the tests that {what} too")
    parser.addoption(
        "--kills",
        type=int,
        default=5,
        help="how often each of the slow kill tests kills what is labelling",
    )


def pytest_collection_finish() -> None:
    """What was imported stays: whoever collects garbage, as labelling does, need not look at it."""
    gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Slow tests first: of several processes none is left with a long file while the others have nothing."""
    apart = [tier for tier in TIERS if not config.getoption(f"--{tier}")]
    left_out = [item for item in items if any(item.get_closest_marker(tier) for tier in apart)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
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


Change = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Bpe:
    """A byte-level BPE tokenizer's state, and changed copies of it as files. size: its ids."""

    state: Mapping[str, Any]
    size: int

    def save(self, folder: Path, *changes: Change) -> str:
        """A directory with the tokenizer.json that these changes make, one after the other."""
        state = copy.deepcopy(dict(self.state))
        for change in changes:
            change(state)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(json.dumps(state))
        return str(folder)

    def renumbered(self, numbers: Sequence[int]) -> Change:
        """Token i becomes token numbers[i]."""

        def change(state: dict[str, Any]) -> None:
            vocabulary = state["model"]["vocab"]
            vocabulary.update({word: numbers[id_] for word, id_ in vocabulary.items()})
            for token in state["added_tokens"]:
                token["id"] = numbers[token["id"]]

        return change

    def extended(self, count: int) -> Change:
        """So many more tokens, which no text of the tests has, behind the others."""

        def change(state: dict[str, Any]) -> None:
            vocabulary = state["model"]["vocab"]
            first = 1 + max(vocabulary.values())
            vocabulary.update({f"<extra {i}>": first + i for i in range(count)})

        return change


@pytest.fixture(scope="session")
def bpe() -> Bpe:
    """A tokenizer trained on Python's own sources: 600 tokens and a special one, <|end|>."""
    sources = [argparse.__file__, textwrap.__file__, json.decoder.__file__]
    tokenizer = byte_level([Path(source).read_text() for source in sources], 600)
    tokenizer.add_special_tokens(["<|end|>"])
    state = json.loads(tokenizer.to_str())
    # An added token keeps a number other than the next one only if the model has it too.
    state["model"]["vocab"]["<|end|>"] = tokenizer.token_to_id("<|end|>")
    return Bpe(state, tokenizer.get_vocab_size())
