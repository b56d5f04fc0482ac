"""Units of work: deterministic slices of the corpus, named by their content."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Slice:
    """A part of one corpus file.

    url: where fsspec finds the file. start, stop: what they count is the source's affair (rows, bytes, or a
    whole file's 0 to size). size: bytes of the file; fingerprint: its etag, or its modification time, when it
    was planned: a file that differs later is not relabelled but reported.
    """

    url: str
    start: int
    stop: int
    size: int
    fingerprint: str


@dataclass(frozen=True)
class Unit:
    """What one shard labels: the grain of work, retry and resume.

    size_bytes: an estimate of the input's size, for progress and balance.
    """

    slices: tuple[Slice, ...]
    size_bytes: int

    @property
    def id(self) -> str:
        """BLAKE2b-128 of files, ranges and fingerprints, 32 hexadecimal digits."""
        content = [[s.url, s.start, s.stop, s.size, s.fingerprint] for s in self.slices]
        text = json.dumps(content, ensure_ascii=True, separators=(",", ":"))
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Quarantined:
    """A record, or one view of it, that has no target, and why.

    view: None when the record failed as a whole. code: a short stable word ("empty", "undecodable",
    "too_large", "teacher_failed", "killed", "non_finite", "duplicate"); reason: a sentence. "empty" records
    are not counted as failures.
    """

    key: str
    row: int
    view: int | None
    code: str
    reason: str
