"""The store: what is planned, what is committed, and how both stay true whoever is killed when.

It knows names and their order of becoming durable. A unit is in the store if and only if it is in the newest
manifest or has a commit record; there is never more than one of it. Bytes move in `storage`, columns are laid
out in `containers`, what rows mean is in `rows`. docs/format.md says all of it byte for byte.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline.targets.commit import Commit, commit_name, unit_of
from pipeline.targets.containers import CONTAINERS
from pipeline.targets.errors import CorruptShard, SpecMismatch, UserError
from pipeline.targets.generations import Generations, Lookup
from pipeline.targets.manifest import NOTHING, Manifest, manifest_name
from pipeline.targets.rows import Rows
from pipeline.targets.spec import Spec, differences
from pipeline.targets.storage import Storage
from pipeline.targets.strict import build
from pipeline.targets.unit import Quarantined, Unit
from pipeline.targets.writer import ShardWriter

if TYPE_CHECKING:
    from pipeline.targets.shards import Shard
    from pipeline.targets.verify import Verification

SPEC = "spec.json"
_CURE = "restore it from a copy, or discard its unit and label again"
_MANIFEST = re.compile(r"manifest/([0-9]{8})\.parquet")


class Store:
    """A store of targets at a URL. Safe to use from several threads and any number of processes."""

    def __init__(self, storage: Storage, spec: Spec) -> None:
        """Use `Store.create` or `Store.open`."""
        self.storage = storage
        self.spec = spec
        self._manifest = Manifest(storage, 0, spec.fingerprint)
        self._plan = Generations(storage)

    @property
    def url(self) -> str:
        """Where it is. Never holds credentials."""
        return self.storage.url

    @classmethod
    def create(cls, url: str, spec: Spec, options: Mapping[str, Any] | None = None) -> Store:
        """Make a store, or open the one that is there with an equal spec.

        Raises SpecMismatch that names what differs, StorageError if the storage cannot hold a store.
        """
        storage = Storage(url, options)
        storage.probe()
        if not storage.put_if_absent(SPEC, spec.to_json(indent=1).encode()):
            found = Spec.from_json(storage.read(SPEC))
            spec = spec.as_wide_as(found)
            if found.fingerprint != spec.fingerprint:
                what = "; ".join(differences(spec, found))
                raise SpecMismatch(
                    f"the store {storage.url} was made with other settings (wanted against stored: {what}): "
                    "give another store url, or go back to the settings of the store"
                )
        return cls(storage, spec)

    @classmethod
    def exists(cls, url: str, options: Mapping[str, Any] | None = None) -> bool:
        """Whether there is a store."""
        try:
            Storage(url, options).read(SPEC)
        except FileNotFoundError:
            return False
        return True

    @classmethod
    def open(cls, url: str, options: Mapping[str, Any] | None = None) -> Store:
        """Open what is there. Raises UserError if there is no store."""
        storage = Storage(url, options)
        try:
            data = storage.read(SPEC)
        except FileNotFoundError:
            raise UserError(
                f"there is no store at {storage.url}: check the URL, or label something first"
            ) from None
        return cls(storage, Spec.from_json(data))

    # The plan

    def generation(self) -> int:
        """The number of the latest plan, 0 when nothing is planned. For `write_plan`."""
        return self._plan.latest()

    def write_plan(self, units: Iterable[Unit], corpus: Mapping[str, Any], after: int) -> int:
        """Add the units that no earlier plan has, as the generation that follows `after`; how many they are.

        corpus: its description, kept in the plan. The units are read once, in a stream; only ids are held.
        after: the `generation` that was the latest when the units were cut. Raises PlannedMeanwhile when
        there is a later one, for what it planned is not to be planned again: cut what is left anew.
        """
        return self._plan.add(units, corpus, after)

    def copy_plan(self, source: Store) -> None:
        """Take over another store's plan, generation by generation.

        Raises SpecMismatch when another plan is here already.
        """
        self._plan.copy(source._plan)

    def planned(self) -> Iterator[Unit]:
        """All units of all generations, in the order of planning, streamed."""
        for _, unit in self._plan.units():
            yield unit

    def planned_count(self) -> int:
        """How many units `planned` gives. A generation's file, which never changes, is opened once."""
        return self._plan.count()

    def lookup(self) -> Lookup:
        """What finds planned units by their ids."""
        return Lookup(self.storage, self._plan)

    def pending(self) -> Iterator[Unit]:
        """Planned and not committed when the iteration began, in plan order."""
        done = self.committed()
        for name, unit in self._plan.units():
            if name not in done:
                yield unit

    # What is committed

    def commits(self, statistics: bool = True) -> Iterator[Commit]:
        """Every committed unit's record, exactly once, streamed.

        statistics: False gives records without statistics and histograms, for whoever keeps very many.
        """
        newer = self.record_units()  # before the manifest: a record only ever vanishes into it
        manifest = self.manifest()
        for commit in manifest.commits(statistics):
            newer.discard(commit.unit)
            yield commit
        folded = []
        for name, data in self.storage.read_many([commit_name(unit) for unit in sorted(newer)]):
            if data is None:
                folded.append(name)
                continue
            commit = self._record(data, name)
            yield commit if statistics else replace(commit, statistics=NOTHING, histograms=NOTHING)
        if folded:
            wanted = set(folded)
            for commit in self.manifest().commits(statistics):
                if commit_name(commit.unit) in wanted:
                    yield commit

    def committed(self) -> set[str]:
        """Ids of the committed units."""
        units = self.record_units()
        units.update(self.manifest().ids())
        return units

    def find(self, unit_id: str) -> Commit | None:
        """The unit's commit record, None if it is not committed."""
        record = self._read_record(unit_id)  # before the manifest: a record only ever vanishes into it
        return self.manifest().find(unit_id) or record

    def writer(self, unit_id: str) -> ShardWriter:
        """For labelling a unit, as a context manager. Nothing is in the store before its `commit`."""
        return ShardWriter(self, unit_id)

    def publish(self, commit: Commit) -> Commit:
        """Make the attempt the unit's, if no other is: the winner's record, ours or another's.

        All that the record names must be durable before.
        """
        name = commit_name(commit.unit)
        while True:
            self.storage.put_if_absent(name, commit.to_json())
            # A late attempt can find the name free, because the winner's record was folded into the manifest.
            winner = self.find(commit.unit)
            if winner is not None:
                break
        if winner.attempt != commit.attempt and commit.unit in self.manifest():
            stray = self._read_record(commit.unit)
            if stray is not None and stray.attempt == commit.attempt:
                self.storage.delete([name])
        return winner

    # Reading

    def read(self, commit: Commit | Shard) -> Iterator[Rows]:
        """The rows of a unit, a row group at a time, after the checksum of the whole shard was verified.

        Raises CorruptShard, or SpecMismatch for a shard of another store; both name the shard.
        """
        if commit.shard is None:
            return
        data = self._checked(commit.shard, commit.shard_sha256, "shard")
        if len(data) != commit.shard_bytes:
            raise CorruptShard(
                f"shard {commit.shard} of {self.url} has {len(data)} bytes and {commit.shard_bytes} were "
                f"committed; {_CURE}"
            )
        rows, container = 0, CONTAINERS[self.spec.container]
        try:
            if not commit.shard.endswith(f".{container.extension}"):
                raise CorruptShard(f"it is no shard of a {self.spec.container} store")
            for batch in container.read(data, self.spec):
                part = Rows.from_arrow(self.spec, batch)
                rows += len(part)
                yield part
            if rows != commit.rows:
                raise CorruptShard(f"it has {rows} rows and {commit.rows} were committed")
        except (CorruptShard, SpecMismatch) as error:
            raise type(error)(f"shard {commit.shard} of {self.url}: {error}; {_CURE}") from error

    def quarantined(self, commit: Commit) -> Iterator[Quarantined]:
        """What of a unit could not be labelled. Raises CorruptShard that names the file."""
        if commit.quarantine is None:
            return
        data = self._checked(commit.quarantine, commit.quarantine_sha256, "quarantine file")
        for line in data.splitlines():
            try:
                yield build(Quarantined, json.loads(line))
            except (ValueError, TypeError) as error:
                raise CorruptShard(
                    f"quarantine file {commit.quarantine} of {self.url}: {error}; {_CURE}"
                ) from error

    def verify(self, progress: Callable[[Commit], None] | None = None) -> Verification:
        """Read all that is committed and list what is wrong with it. progress: called after each unit."""
        from pipeline.targets.verify import verify

        return verify(self, progress)

    def _checked(self, name: str, sha256: str | None, what: str) -> bytes:
        try:
            data = self.storage.read(name)
        except FileNotFoundError:
            raise CorruptShard(f"{what} {name} of {self.url} is missing; {_CURE}") from None
        if hashlib.sha256(data).hexdigest() != sha256:
            raise CorruptShard(f"{what} {name} of {self.url} has not the bytes that were committed; {_CURE}")
        return data

    # Upkeep

    def compact(self) -> int:
        """Fold the commit records into a new manifest; the number of units in it."""
        return len(self._fold(frozenset()))

    def discard(self, units: Iterable[str]) -> None:
        """Take units out of the store, for example damaged ones, so that labelling does them again."""
        wanted = frozenset(units)
        while wanted & self.committed():
            self._fold(wanted)
            self.storage.delete([commit_name(unit) for unit in wanted])

    def replace(self, changes: Iterable[tuple[Commit, Commit]]) -> int:
        """Put commit records in the place of their units' present ones, all at the same instant.

        changes: pairs of the present and the new one, whose files are durable. A unit that has another record
        by now stays as it is. How many of the new ones are in the store.
        """
        pairs = list(changes)
        old = {_attempt(before): after for before, after in pairs}
        new = {_attempt(after) for _, after in pairs}
        while True:
            manifest = self._fold(frozenset())
            there = {attempt for attempt in manifest.attempts() if attempt in old or attempt in new}
            due = [after for attempt, after in old.items() if attempt in there - new]
            if not due:
                return len(there & new)
            data = manifest.encode(due, frozenset(commit.unit for commit in due))
            self.storage.put_if_absent(manifest_name(manifest.number + 1), data)

    def gc(self, grace_seconds: float = 3600.0, delete: bool = True) -> list[str]:
        """Remove what nothing refers to and is older than the grace; its names, sorted.

        Shards and quarantine files of attempts that lost or died, half-written files, commit records of units
        that the manifest holds, and older manifests. The grace must be longer than an attempt may take
        between the upload of its shard and its commit record. delete: False only lists.
        """
        from pipeline.targets.garbage import garbage

        names = garbage(self, time.time() - grace_seconds)
        if delete:
            self.storage.delete(names)
        return sorted(names)

    def _fold(self, without: frozenset[str]) -> Manifest:
        while True:
            newer = self.record_units()
            manifest = self.manifest()
            fresh = sorted(unit for unit in newer if unit not in manifest and unit not in without)
            dropped = any(unit in manifest for unit in without)
            if fresh or dropped:
                data = manifest.encode(self.records(fresh), without)
                if not self.storage.put_if_absent(manifest_name(manifest.number + 1), data):
                    continue  # another process compacted: begin again from its manifest
                manifest = self.manifest()
            self.storage.delete([commit_name(unit) for unit in newer if unit in manifest])
            return manifest

    def manifest(self) -> Manifest:
        """The manifest of the highest number. Its units' ids are kept until there is a newer one."""
        while True:
            names = [entry.name for entry in self.storage.list("manifest/")]
            numbers = [int(found[1]) for name in names if (found := _MANIFEST.fullmatch(name))]
            newest = max(numbers, default=0)
            if newest > self._manifest.number:  # fewer are listed than are known where listings lag behind
                try:
                    self._manifest = Manifest(self.storage, newest, self.spec.fingerprint)
                except FileNotFoundError:
                    continue  # a newer one has replaced it since the listing
            return self._manifest

    def latest_manifest(self) -> Manifest:
        """The same on storage whose listings lag behind: manifests that are not listed yet are asked for."""
        self.manifest()
        with contextlib.suppress(FileNotFoundError):
            while True:
                self._manifest = Manifest(self.storage, self._manifest.number + 1, self.spec.fingerprint)
        return self._manifest

    def record_units(self) -> set[str]:
        """Ids of the units that have a commit record of their own, beside the manifest."""
        return {unit for entry in self.storage.list("commits/") if (unit := unit_of(entry.name))}

    def _read_record(self, unit: str) -> Commit | None:
        return next(self.records([unit]), None)

    def records(self, units: Sequence[str]) -> Iterator[Commit]:
        """The commit records of these units, without those that have none (any more)."""
        for name, data in self.storage.read_many([commit_name(unit) for unit in units]):
            if data is not None:
                yield self._record(data, name)

    def _record(self, data: bytes, name: str) -> Commit:
        commit = Commit.from_json(data, name)
        if commit.spec_fingerprint != self.spec.fingerprint:
            raise SpecMismatch(
                f"the commit record {name} of {self.url} belongs to a store of another spec: delete it and "
                "label its unit again"
            )
        return commit


def _attempt(commit: Commit) -> str:
    """As it stands in the names of its files."""
    return f"{commit.unit}-{commit.attempt}"
