"""The containers, one a file. `CONTAINERS` is the list that a new container is added to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa

from pipeline.targets.containers import parquet, webdataset, zarr
from pipeline.targets.containers.base import Writer
from pipeline.targets.spec import Container as Name
from pipeline.targets.spec import Spec


@dataclass(frozen=True)
class Container:
    """How the rows of a unit become one file.

    extension: of a shard's name. writer: of record batches of `Spec.schema()`, to a sink that need not seek.
    read: the record batches again, of bytes that may come from anywhere; raises CorruptShard, or SpecMismatch
    for a shard that was written for another spec.
    """

    extension: str
    writer: Callable[[BinaryIO, Spec], Writer]
    read: Callable[[bytes, Spec], Iterator[pa.RecordBatch]]


CONTAINERS: dict[Name, Container] = {
    "parquet": Container("parquet", parquet.Writer, parquet.read),
    "webdataset": Container("tar", webdataset.Writer, webdataset.read),
    "zarr": Container("zarr.zip", zarr.Writer, zarr.read),
}

EXTENSIONS = frozenset(container.extension for container in CONTAINERS.values())

__all__ = ["CONTAINERS", "EXTENSIONS", "Container", "Writer"]
