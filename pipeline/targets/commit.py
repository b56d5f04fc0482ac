"""The commit record: the small JSON that makes a shard part of the store. A shard without one does not exist.

It knows the names of a unit's files and what a record must hold; who wins and where it lies is the store's.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.targets.containers import EXTENSIONS
from pipeline.targets.errors import CorruptShard
from pipeline.targets.strict import build

HISTOGRAM_BINS = 40
"""Bins of a histogram in a commit record; those of entropies are 0.25 nats wide, the last one open."""

_DIGITS = {"unit": 32, "attempt": 16, "spec_fingerprint": 32, "shard_sha256": 64, "quarantine_sha256": 64}
_HEX = {digits: re.compile(f"[0-9a-f]{{{digits}}}") for digits in set(_DIGITS.values())}
_COUNTS = ("shard_bytes", "records", "rows", "targets", "quarantined", "failures", "filtered")
_SECONDS = ("started", "finished", "forward_seconds")


@dataclass(frozen=True)
class Commit:
    """What a store keeps of a labelled unit.

    unit: its id, 32 hexadecimal digits; attempt: of whoever labelled it, 16.
    shard: name of the file of targets, None if the unit has none; shard_bytes: its size; shard_sha256.
    records: read from the corpus, labelled or quarantined; rows: in the shard; targets: of each "next_token"
    head, or of each head if the store has none such; quarantined: entries in the quarantine file, failures:
    those of them that are not merely "empty". quarantine: name of that file, None if there is none.
    statistics: means per target, by "<head>.<name>"; histograms: of targets, by "<head>.<name>".
    started, finished: unix seconds; forward_seconds: spent in the teacher; device: where.
    filtered: records that the corpus's filters left out, which are not among `records`.
    """

    unit: str
    attempt: str
    shard: str | None
    shard_bytes: int
    shard_sha256: str | None
    records: int
    rows: int
    targets: int
    quarantined: int
    failures: int
    quarantine: str | None
    quarantine_sha256: str | None
    spec_fingerprint: str
    statistics: Mapping[str, float]
    histograms: Mapping[str, list[int]]
    started: float
    finished: float
    forward_seconds: float
    device: str
    filtered: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError: a record comes from outside, and its names decide which files are opened."""
        for name, digits in _DIGITS.items():
            value = getattr(self, name)
            if value is None and name.endswith("sha256"):
                continue
            if not isinstance(value, str) or not _HEX[digits].fullmatch(value):
                raise ValueError(f"{name} is not {digits} hexadecimal digits")
        for name in _COUNTS:
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value < 2**63:
                raise ValueError(f"{name} is no count")
        for name in _SECONDS:
            if not _is_number(getattr(self, name)):
                raise ValueError(f"{name} is not a number of seconds")
        if self.shard is not None and not self._is_shard(self.shard):
            raise ValueError("shard is not the name of this attempt's shard")
        if self.quarantine not in (None, quarantine_name(self.unit, self.attempt)):
            raise ValueError("quarantine is not the name of this attempt's quarantine file")
        if (self.shard is None) != (self.shard_sha256 is None) or (self.shard is None) != (self.rows == 0):
            raise ValueError("shard, its checksum and rows contradict each other")
        if (self.quarantine is None) != (self.quarantine_sha256 is None) or (
            (self.quarantine is None) != (self.quarantined == 0)
        ):
            raise ValueError("quarantine, its checksum and its count contradict each other")
        if not isinstance(self.device, str):
            raise ValueError("device is no text")
        if not isinstance(self.statistics, Mapping) or not all(map(_is_number, self.statistics.values())):
            raise ValueError("statistics are not finite numbers by name")
        if not isinstance(self.histograms, Mapping) or not all(map(_is_counts, self.histograms.values())):
            raise ValueError("histograms are not lists of counts by name")

    def _is_shard(self, name: object) -> bool:
        extension = str(name).partition(".")[2]
        return extension in EXTENSIONS and name == shard_name(self.unit, self.attempt, extension)

    def to_json(self) -> bytes:
        """The record as it is stored."""
        return json.dumps(_as_dict(self), sort_keys=True, allow_nan=False).encode()

    @classmethod
    def from_json(cls, data: bytes, name: str) -> Commit:
        """Raises CorruptShard that names the record when it is not one."""
        try:
            fields = json.loads(data)
            if not isinstance(fields, dict):
                raise ValueError("not a JSON object")
            commit = build(cls, fields)
            if name != commit_name(commit.unit):
                raise ValueError(f"it speaks of unit {commit.unit}")
        except (ValueError, TypeError, RecursionError) as error:
            raise CorruptShard(
                f"the commit record {name} is broken ({error}): delete it and label its unit again"
            ) from error
        return commit


def _as_dict(commit: Commit) -> dict[str, Any]:
    """Without `filtered` where nothing was, as records were before there were filters."""
    fields = {field.name: getattr(commit, field.name) for field in dataclasses.fields(commit)}
    if not commit.filtered:
        del fields["filtered"]
    return fields


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _is_counts(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def shard_name(unit: str, attempt: str, extension: str = "parquet") -> str:
    """The unit's first two digits spread a million shards over 256 folders. extension: its container's."""
    return f"shards/{unit[:2]}/{unit}-{attempt}.{extension}"


def quarantine_name(unit: str, attempt: str) -> str:
    """The file of what an attempt could not label."""
    return f"quarantine/{unit}-{attempt}.jsonl"


def commit_name(unit: str) -> str:
    """One name a unit, whoever labels it: the name that attempts race for."""
    return f"commits/{unit}.json"


def unit_of(name: str) -> str | None:
    """The unit whose commit record has this name; None for any other name."""
    found = re.fullmatch(r"commits/([0-9a-f]{32})\.json", name)
    return found[1] if found else None
