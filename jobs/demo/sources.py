"""The demo's corpus: the Python sources installed here, cut into a teacher's part and a labelled part.

Which file is in which part follows from a hash of its path below the interpreter's or the packages' folder,
so the parts are of one kind, do not overlap, and are the same on every run while nothing else is installed.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.targets.errors import CorpusMissing

MOST_BYTES = 64_000
"""Larger files are mostly generated tables; they are left out."""


@dataclass(frozen=True)
class Part:
    """Some of the sources, in the order of their hashes. size: bytes."""

    paths: tuple[Path, ...]
    size: int


@dataclass(frozen=True)
class Sources:
    """All sources found, and the two parts that the demo takes of them.

    found, size: files and bytes of all that were considered; teacher, labelled: disjoint in paths and
    contents.
    """

    found: int
    size: int
    teacher: Part
    labelled: Part


def find(teacher_bytes: int, labelled_bytes: int) -> Sources:
    """Both parts, of at least so many bytes each. Raises CorpusMissing when there are not so many."""
    candidates = sorted(_candidates())
    ordered = iter(candidates)
    seen: set[bytes] = set()
    labelled = _take(ordered, labelled_bytes, seen)
    teacher = _take(ordered, teacher_bytes, seen)
    return Sources(len(candidates), sum(size for _, _, size in candidates), teacher, labelled)


def _take(candidates: Iterator[tuple[bytes, Path, int]], size: int, seen: set[bytes]) -> Part:
    """The next files whose contents were not seen before; empty ones are kept, as any corpus has them."""
    paths: list[Path] = []
    total = 0
    for _, path, length in candidates:
        digest = hashlib.blake2b(path.read_bytes(), digest_size=16).digest()
        if length and digest in seen:
            continue
        seen.add(digest)
        paths.append(path)
        total += length
        if total >= size:
            return Part(tuple(paths), total)
    raise CorpusMissing(
        f"the Python sources installed here end after {total / 1e6:.1f} of {size / 1e6:.1f} MB: run the demo "
        "in an environment with the packages of the demo extra"
    )


def _candidates() -> Iterator[tuple[bytes, Path, int]]:
    """Hash, path and size of every source file of moderate size."""
    roots = {name: Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")}
    for root in dict.fromkeys(roots.values()):
        others = {str(other) for other in roots.values() if other != root}
        for folder, folders, names in os.walk(root):
            folders[:] = sorted(
                name
                for name in folders
                if name not in ("__pycache__", "site-packages", "dist-packages")
                and os.path.join(folder, name) not in others
            )
            for name in names:
                path = Path(folder, name)
                if name.endswith(".py") and not name.startswith(".") and path.is_file():
                    size = path.stat().st_size
                    if size <= MOST_BYTES:
                        relative = path.relative_to(root).as_posix()
                        yield hashlib.blake2b(relative.encode(), digest_size=16).digest(), path, size
