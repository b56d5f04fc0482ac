"""An export, from a store to plain files: one Parquet file a unit, each whole or not there.

It knows stores and where files go; what is in their columns is the format's (`topk_columns`).
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import pyarrow.parquet as pq

from pipeline.interchange import topk_columns
from pipeline.interchange.topk_columns import Alignment
from pipeline.targets.commit import Commit
from pipeline.targets.errors import UserError
from pipeline.targets.spec import Spec
from pipeline.targets.storage import Storage
from pipeline.targets.store import Store

SETTINGS = "export.json"
"""Beside the exported files: what they were exported from, and how."""


@dataclass(frozen=True)
class TopKExport:
    """How a store becomes top-k columns; the fields are as in `topk_columns.columns`."""

    head: str
    k: int
    alignment: Alignment = "next"
    normalize: bool = False

    def check(self, spec: Spec) -> None:
        """Raises UserError when the store has not what is to be exported."""
        spec.head(self.head)
        if self.k < 1:
            raise UserError(f"k must be at least 1, not {self.k}")


def prepare(store: Store, destination: Storage, export: TopKExport) -> list[Commit]:
    """The units that are still to be exported.

    Raises UserError when the destination holds another export.
    """
    export.check(store.spec)
    settings = {"store": store.spec.fingerprint, "format": "topk-columns", **asdict(export)}
    data = json.dumps(settings, sort_keys=True, indent=1).encode()
    if not destination.put_if_absent(SETTINGS, data) and destination.read(SETTINGS) != data:
        raise UserError(
            f"{destination.url} holds an export of another store or with other settings: "
            "give another destination"
        )
    done = {entry.name for entry in destination.list("")}
    return [commit for commit in store.commits() if commit.shard and _name(commit) not in done]


def run(store: Store, destination: Storage, export: TopKExport, commits: list[Commit]) -> Iterator[Commit]:
    """Export units, and give each when its file is durable. Raises CorruptShard, StorageError."""
    for commit in commits:
        held = io.BytesIO()  # a shard is small, and so are its columns
        writer: pq.ParquetWriter | None = None
        for rows in store.read(commit):
            batch = topk_columns.columns(rows, export.head, export.k, export.alignment, export.normalize)
            writer = writer or pq.ParquetWriter(held, batch.schema, compression="zstd")
            writer.write_batch(batch)
        if writer is not None:
            writer.close()
        with destination.upload(_name(commit)) as sink:
            sink.write(held.getbuffer())
        yield commit


def _name(commit: Commit) -> str:
    return f"{commit.unit}.parquet"
