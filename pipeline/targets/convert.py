"""The same store in another container: unit by unit, resumable, and each unit compared with what it was.

It knows plans, commits and rows; how a container lays rows out it does not know. The codecs' arrays move as
they are: nothing is decoded or encoded again, and the store keeps the format version that says what they
mean. The source is only read.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import numpy as np

from pipeline.targets.commit import Commit
from pipeline.targets.errors import ConfigError, CorruptShard
from pipeline.targets.ragged import Array, Ragged
from pipeline.targets.rows import Rows
from pipeline.targets.spec import Container
from pipeline.targets.store import Store


def destination(source: Store, url: str, container: str, options: Mapping[str, Any] | None = None) -> Store:
    """The store to convert into, made with the source's plan, or the one that an earlier run has begun.

    Raises ConfigError when there is nothing to convert or the container cannot hold the store, SpecMismatch
    when another store is there, StorageError.
    """
    if container == source.spec.container:
        raise ConfigError(f"{source.url} is a {container} store already: name another container")
    try:
        # The spec refuses a container that it does not know.
        spec = dataclasses.replace(source.spec, container=cast(Container, container))
    except ValueError as error:
        raise ConfigError(f"{source.url} cannot be converted: {error}") from error
    target = Store.create(url, spec, options)
    target.copy_plan(source)
    return target


def convert(source: Store, target: Store, progress: Callable[[Commit], None] | None = None) -> int:
    """Write every unit of the source that the target lacks, and read it back; how many they were.

    progress: called after each unit with its new commit record. Raises CorruptShard that names a damaged
    shard of the source, or a unit whose rows did not come back as they were.
    """
    done, written = target.committed(), 0
    for commit in source.commits():
        if commit.unit not in done:
            converted = _unit(source, target, commit)
            written += 1
            if progress is not None:
                progress(converted)
    target.compact()
    return written


def _unit(source: Store, target: Store, commit: Commit) -> Commit:
    before = _Digest()
    with target.writer(commit.unit) as writer:
        for rows in source.read(commit):
            before.add(rows)
            writer.write(dataclasses.replace(rows, spec=target.spec))
        quarantined = list(source.quarantined(commit))
        for item in quarantined:
            writer.quarantine(item)
        converted = writer.commit(
            records=commit.records,
            filtered=commit.filtered,
            statistics=commit.statistics,
            histograms=commit.histograms,
            started=commit.started,
            finished=commit.finished,
            forward_seconds=commit.forward_seconds,
            device=commit.device,
        )
    after = _Digest.of(target.read(converted))
    if after != before.hexdigest() or list(target.quarantined(converted)) != quarantined:
        raise CorruptShard(
            f"unit {commit.unit} of {target.url} is not what it is in {source.url}: "
            "discard it and convert again"
        )
    return converted


class _Digest:
    """SHA-256 of everything that rows hold, whatever batches they come in."""

    def __init__(self) -> None:
        self._parts: dict[str, Any] = {}

    @classmethod
    def of(cls, parts: Iterable[Rows]) -> str:
        """Of all the rows."""
        digest = cls()
        for rows in parts:
            digest.add(rows)
        return digest.hexdigest()

    def add(self, rows: Rows) -> None:
        """The rows that follow."""
        keys = [key.encode() for key in rows.keys]
        self._update("key", np.frombuffer(b"".join(keys), dtype=np.uint8))
        self._update("key lengths", np.array([len(key) for key in keys], dtype=np.int64))
        for name in ("row", "view", "views", "targets"):
            self._update(name, getattr(rows, name))
        for name, stored in rows.inputs.items():
            self._update(f"in.{name}", stored.values if isinstance(stored, Ragged) else stored)
            if isinstance(stored, Ragged):
                self._update(f"in.{name} lengths", stored.lengths)
        for head, encoded in rows.heads.items():
            for name, array in encoded.items():
                self._update(f"{head}.{name}", array)

    def hexdigest(self) -> str:
        """So far."""
        parts = [f"{name} {part.hexdigest()}\n" for name, part in sorted(self._parts.items())]
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    def _update(self, name: str, array: Array) -> None:
        if name not in self._parts:
            self._parts[name] = hashlib.sha256(f"{array.dtype.str} {array.shape[1:]}".encode())
        self._parts[name].update(np.ascontiguousarray(array).tobytes())
