"""Small stores with real contents: one text head and one image head, encoded by the real codecs."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.targets import Commit, Head, Input, Quarantined, Ragged, Rows, Slice, Spec, Store, Unit
from pipeline.targets.codecs import Codec, Dense, Threshold, TopK
from pipeline.targets.codecs.base import offsets_of
from pipeline.targets.spec import Container

SIZE = 50


def text_spec(codec: Codec | None = None, **changes: Any) -> Spec:
    """Token windows with one next-token head and one label a window."""
    fields: dict[str, Any] = {
        "inputs": (Input("tokens", "<u2", (None,)),),
        "heads": (
            Head("logits", SIZE, "next_token", codec or Threshold()),
            Head("topic", 4, "single", Dense()),
        ),
        "teacher": {"kind": "fake", "fingerprint": "t"},
        "views": {"kind": "windows", "fingerprint": "v"},
    }
    return Spec(**{**fields, **changes})


def image_spec() -> Spec:
    """Small images, each with two heads."""
    return Spec(
        inputs=(Input("image", "|u1", (3, 2)),),
        heads=(Head("logits", SIZE, "single", TopK(k=3)), Head("embedding", 6, "single", Dense("float32"))),
        teacher={"kind": "fake", "fingerprint": "t"},
        views={"kind": "arrays", "fingerprint": "v"},
    )


def make_rows(spec: Spec, records: int = 12, *, first: int = 0, views: int = 1, seed: int = 0) -> Rows:
    """All views of some records, with random contents."""
    rng = np.random.default_rng([seed, first])
    rows = records * views
    lengths = rng.integers(1, 30, rows)
    sequences = any(head.positions == "next_token" for head in spec.heads)
    targets = (lengths - 1 if sequences else np.zeros(rows)).astype(np.int32)
    inputs: dict[str, Any] = {}
    for item in spec.inputs:
        total = int(lengths.sum()) if item.varies else rows
        values = rng.integers(0, SIZE, (total, *item.item_shape)).astype(item.dtype)
        inputs[item.name] = Ragged(values, offsets_of(lengths)) if item.varies else values
    heads = {}
    for head in spec.heads:
        count = int(targets.sum()) if head.positions == "next_token" else rows
        logits = 4 * rng.normal(size=(count, head.size)).astype(np.float32)
        empty = {f.name: np.zeros((0, *f.shape), f.dtype) for f in head.codec.layout(head.size)}
        uniforms = rng.random((count, head.codec.draws))
        heads[head.name] = head.codec.encode(logits, uniforms) if count else empty
    return Rows(
        spec=spec,
        keys=[f"file.txt#{first + record}" for record in range(records) for _ in range(views)],
        row=np.repeat(np.arange(first, first + records), views),
        view=np.tile(np.arange(views, dtype=np.int32), records),
        views=np.full(rows, views, dtype=np.int32),
        targets=targets,
        inputs=inputs,
        heads=heads,
    )


def make_units(count: int, name: str = "corpus") -> list[Unit]:
    """Units of nothing in particular, each different."""
    return [
        Unit((Slice(f"/{name}/{i:07d}.txt", 0, 1000, 1000, f"{i}"), Slice("/ü.txt", i, i + 1, 9, "x")), 1001)
        for i in range(count)
    ]


FACTS: dict[str, Any] = {
    "statistics": {"logits.entries": 3.25},
    "histograms": {"logits.entropy": [0] * 39 + [7]},
    "started": 1.7e9,
    "forward_seconds": 0.5,
    "device": "cpu",
}


def label(
    store: Store,
    unit: str,
    parts: Sequence[Rows] | None = None,
    quarantined: Sequence[Quarantined] = (),
    records: int | None = None,
    facts: Mapping[str, Any] = FACTS,
) -> Commit:
    """One unit as a labeller writes it: by default 12 records and one empty one."""
    if parts is None:
        parts = [make_rows(store.spec)]
        quarantined = [Quarantined("file.txt#12", 12, None, "empty", "the record has no text")]
        records = 13
    if records is None:
        records = len({int(row) for part in parts for row in part.row} | {item.row for item in quarantined})
    with store.writer(unit) as writer:
        for part in parts:
            writer.write(part)
        for item in quarantined:
            writer.quarantine(item)
        return writer.commit(records=records, **facts)


def same(a: Rows, b: Rows) -> bool:
    """Whether two batches of rows hold the same, byte for byte."""
    return bool(a.to_arrow().equals(b.to_arrow(), check_metadata=True))


@dataclass(frozen=True)
class Kit:
    """The helpers above, for tests that import no other test file. container: of the specs."""

    container: Container = "parquet"
    make_rows: Callable[..., Rows] = make_rows
    make_units: Callable[..., list[Unit]] = make_units
    label: Callable[..., Commit] = label
    same: Callable[[Rows, Rows], bool] = same

    def text_spec(self, codec: Codec | None = None, **changes: Any) -> Spec:
        return text_spec(codec, **{"container": self.container, **changes})

    def image_spec(self) -> Spec:
        return dataclasses.replace(image_spec(), container=self.container)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where bytes go and how a container lays them out is unrelated: not all pairs are tried every time."""
    for item in items:
        params = (
            item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        )
        if params.get("place") == "s3" and params.get("container", "parquet") != "parquet":
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def container() -> Container:
    """Of the test's stores. A suite that holds for every container overrides it with `params`."""
    return "parquet"


@pytest.fixture
def kit(container: Container) -> Kit:
    return Kit(container)


@pytest.fixture(params=["local", "s3", pytest.param("ceph", marks=pytest.mark.ceph)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, dict[str, Any]]:
    """Where a store may be, and the options to reach it: a directory, and a bucket of each S3 server."""
    if request.param == "local":
        return str(tmp_path / "store"), {}
    bucket: tuple[str, dict[str, Any]] = request.getfixturevalue(f"{request.param}_bucket_url")
    return bucket


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 KiB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system takes root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A directory that this user cannot write to, root or not."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    if os.geteuid():
        folder.chmod(0o500)
        yield folder
        folder.chmod(0o700)
        return
    bind = [["mount", "--bind", str(folder), str(folder)], ["mount", "-o", "remount,ro,bind", str(folder)]]
    if any(subprocess.run(step, capture_output=True, check=False).returncode for step in bind):
        pytest.skip("root cannot make a directory read-only for itself here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
