"""Writing one unit: shard, then quarantine file, then the commit record that makes both exist.

Each is durable before the next begins. Killed at any instant, an attempt leaves either a whole committed unit
or files that nothing refers to.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import time
import uuid
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from pipeline.targets.commit import Commit, quarantine_name, shard_name
from pipeline.targets.containers import CONTAINERS, Writer
from pipeline.targets.errors import SpecMismatch
from pipeline.targets.rows import Rows
from pipeline.targets.unit import Quarantined

if TYPE_CHECKING:
    from pipeline.targets.store import Store


class ShardWriter:
    """One attempt at a unit, a context manager. Left without `commit`, it leaves nothing behind."""

    def __init__(self, store: Store, unit_id: str) -> None:
        self._store = store
        self._unit = unit_id
        self._attempt = uuid.uuid4().hex[:16]
        self._upload = contextlib.ExitStack()
        self._sink: _Counted | None = None
        self._container = CONTAINERS[store.spec.container]
        self._name = shard_name(unit_id, self._attempt, self._container.extension)
        self._shard: Writer | None = None
        self._quarantine: list[bytes] = []
        self._rows = self._targets = self._failures = 0

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._sink is not None:
            self._sink.discard()
            # Closing the stack without an error would publish the half-written shard.
            with contextlib.suppress(Abandoned):
                self._upload.__exit__(Abandoned, Abandoned(), None)
            self._sink = None

    def write(self, rows: Rows) -> None:
        """Append rows, in the order of the corpus. Raises SpecMismatch if they are of another spec."""
        spec = self._store.spec
        if rows.spec is not spec and rows.spec.fingerprint != spec.fingerprint:
            raise SpecMismatch(
                f"rows of the spec {rows.spec.fingerprint} do not belong into {self._store.url}"
            )
        if not len(rows):
            return
        if self._shard is None:
            self._sink = _Counted(self._upload.enter_context(self._store.storage.upload(self._name)))
            self._shard = self._container.writer(cast(BinaryIO, self._sink), spec)
        self._shard.write(rows.to_arrow())
        self._rows += len(rows)
        per_row = any(head.positions == "next_token" for head in spec.heads)
        self._targets += int(rows.targets.sum()) if per_row else len(rows)

    def quarantine(self, item: Quarantined) -> None:
        """Note what could not be labelled."""
        line = json.dumps(dataclasses.asdict(item), sort_keys=True)
        self._quarantine.append(line.encode() + b"\n")
        self._failures += item.code != "empty"

    def commit(
        self,
        *,
        records: int,
        statistics: Mapping[str, float],
        histograms: Mapping[str, list[int]],
        started: float,
        forward_seconds: float,
        device: str,
        finished: float | None = None,
        filtered: int = 0,
        publish: bool = True,
    ) -> Commit:
        """Make all durable and publish it: the unit's commit record, ours or that of a faster attempt.

        finished: unix seconds, by default now. filtered: records that the corpus's filters left out. publish:
        False returns our record and leaves the store as it is; `Store.replace` may put it there.
        """
        storage, shard, shard_bytes, shard_sha256 = self._store.storage, None, 0, None
        if self._shard is not None and self._sink is not None:
            self._shard.close()
            shard, shard_bytes, shard_sha256 = self._name, *self._sink.measure()
            self._sink = None
            self._upload.close()
        quarantine, quarantine_sha256 = None, None
        if self._quarantine:
            data = b"".join(self._quarantine)
            quarantine = quarantine_name(self._unit, self._attempt)
            quarantine_sha256 = hashlib.sha256(data).hexdigest()
            with storage.upload(quarantine) as file:
                file.write(data)
        commit = Commit(
            unit=self._unit,
            attempt=self._attempt,
            shard=shard,
            shard_bytes=shard_bytes,
            shard_sha256=shard_sha256,
            records=records,
            rows=self._rows,
            targets=self._targets,
            quarantined=len(self._quarantine),
            failures=self._failures,
            quarantine=quarantine,
            quarantine_sha256=quarantine_sha256,
            spec_fingerprint=self._store.spec.fingerprint,
            statistics={name: float(value) for name, value in statistics.items()},
            histograms={name: [int(n) for n in bins] for name, bins in histograms.items()},
            started=started,
            finished=time.time() if finished is None else finished,
            forward_seconds=forward_seconds,
            device=device,
            filtered=filtered,
        )
        return self._store.publish(commit) if publish else commit


class Abandoned(Exception):
    """Tells an upload that nobody wants it any more."""


class _Counted:
    """A sink that knows size and checksum of what went through it. As much of a file as containers need."""

    closed = False

    def __init__(self, sink: BinaryIO) -> None:
        self._sink = sink
        self._size = 0
        self._discarded = False
        self._hash = hashlib.sha256()

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if not self._discarded:
            self._sink.write(view)
        self._hash.update(view)
        self._size += len(view)
        return len(view)

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        """The upload flushes the sink."""

    def close(self) -> None:
        """The upload closes the sink."""

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def discard(self) -> None:
        """Write nothing more: abandoned Parquet and zip writers still write their ends when collected."""
        self._discarded = True

    def measure(self) -> tuple[int, str]:
        """Bytes and SHA-256 so far."""
        return self._size, self._hash.hexdigest()
