"""TinyViT's logits files: for each image and epoch an augmentation's seed, and the likeliest classes.

It knows the layout (github.com/microsoft/Cream, TinyViT/: save_logits.py and data/augmentation/manager.py):
a folder `logits_top<k>_epoch<n>` for each epoch, in it `rank<r>-keys.txt`, a key a line, and
`rank<r>-values.bin`, for each key a little-endian int32 seed, k int16 classes and k float16 probabilities.

Classes above 32767 wrap to negative int16 and are put right here, up to 65535. The seed becomes the input
`seed`: with it, TinyViT's own augmentation draws the view again. A key that several ranks saved in an epoch
(their sampler pads) is taken from the lowest rank, as one of the others is no better.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Iterator
from functools import lru_cache
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from pipeline.interchange import topk
from pipeline.interchange.base import HEAD, Importer, described
from pipeline.interchange.source import Source
from pipeline.targets.errors import ConfigError, CorpusUnreadable
from pipeline.targets.rows import Rows
from pipeline.targets.spec import Head, Input, Spec
from pipeline.targets.unit import Quarantined, Unit

UNIT_ROWS = 16384
KEYS, VALUES = "-keys.txt", "-values.bin"

SEED = "seed"
"""The input that holds the augmentation's seed, int32."""

_FOLDER = re.compile(r"logits_top([0-9]+)_epoch([0-9]+)")
_RANK = re.compile(r"rank([0-9]+)")


class TinyViT(Importer):
    """TinyViT's saved logits: one epoch's folder, or the folder that holds those of all epochs."""

    patterns: ClassVar[tuple[str, ...]] = ("*" + KEYS, "*" + VALUES)

    size: int = Field(ge=1, le=2**16)
    """Classes of the teacher's head (21841 for ImageNet-22k). More than 65536 are lost in an int16."""

    k: int | None = Field(default=None, ge=1)
    """Classes of each image; by default what the folder's name says."""

    def spec(self, source: Source) -> Spec:
        k = self._k(source)
        for package in _packages(source):
            _check_sizes(source, package, k)
        description = described("tinyvit", source, tail=topk.TAIL)
        return Spec(
            inputs=(Input(SEED, "<i4", ()),),
            heads=(Head(HEAD, self.size, "single", topk.codec(k)),),
            teacher=description,
            views={"kind": "imported", "fingerprint": description["fingerprint"], "parameters": SEED},
        )

    def units(self, source: Source) -> Iterator[Unit]:
        item = _record(self._k(source)).itemsize
        for package in _packages(source):
            row = start = at = 0
            for line in _lines(source, package):
                if row and row % UNIT_ROWS == 0:
                    yield _unit(source, package, (start, at), (row - UNIT_ROWS, row), item)
                    start = at
                at += len(line)
                row += 1
            first = (row - 1) // UNIT_ROWS * UNIT_ROWS
            if row:
                yield _unit(source, package, (start, at), (first, row), item)

    def read(self, source: Source, unit: Unit, spec: Spec) -> Iterator[Rows | Quarantined]:
        keys_part, values_part = unit.slices
        package = keys_part.url.removesuffix(KEYS)
        k, folder = self._k(source), package.rpartition("/")[0]
        item = _record(k).itemsize
        with source.open(keys_part.url) as file:
            file.seek(keys_part.start)
            lines = file.read(keys_part.stop - keys_part.start).splitlines()
        with source.open(values_part.url) as file:
            file.seek(values_part.start * item)
            data = file.read((values_part.stop - values_part.start) * item)
        if len(lines) * item != len(data):
            raise CorpusUnreadable(f"{source.where(values_part.url)} is cut off: copy it again")
        records = np.frombuffer(data, _record(k))
        again = _duplicates(source, folder).get(package, frozenset())
        ids, log_probs = _values(records)
        faults = topk.faults(ids, log_probs, self.size)
        kept: list[int] = []
        names: list[str] = []
        for row, line in enumerate(lines):
            place = f"{package}#{values_part.start + row}"
            name = line.decode(errors="replace").strip()
            if "\ufffd" in name:
                yield Quarantined(place, row, None, "undecodable", f"{place}: its key is no UTF-8")
            elif row in faults:
                code, reason = faults[row]
                yield Quarantined(place, row, None, code, f"{place}: {name}: {reason}")
            elif values_part.start + row in again:
                yield Quarantined(place, row, None, "duplicate", f"{place}: {name} is there once more")
            else:
                kept.append(row)
                names.append(f"{folder}/{name}" if folder else name)
        if kept:
            at = np.array(kept, dtype=np.int64)
            yield Rows(
                spec=spec,
                keys=names,
                row=at,
                view=np.zeros(len(at), dtype=np.int32),
                views=np.ones(len(at), dtype=np.int32),
                targets=np.zeros(len(at), dtype=np.int32),
                inputs={SEED: records[SEED][at]},
                heads={HEAD: topk.encode(ids[at], log_probs[at], k, self.size)},
            )

    def _k(self, source: Source) -> int:
        """Classes of each image. Raises ConfigError when the folders disagree."""
        folders = {package.rpartition("/")[0] or source.url for package in _packages(source)}
        named = {
            int(found[1]) for folder in folders if (found := _FOLDER.fullmatch(folder.rpartition("/")[2]))
        }
        if self.k is not None:
            named.add(self.k)
        if len(named) != 1:
            what = f"different numbers of classes ({sorted(named)})" if named else "no number of classes"
            raise ConfigError(f"{source.url} and k name {what}: give k, and folders of that k alone")
        return named.pop()


def _record(k: int) -> np.dtype[np.void]:
    return np.dtype([(SEED, "<i4"), ("ids", "<u2", (k,)), ("values", "<f2", (k,))])


def _values(records: npt.NDArray[np.void]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Classes, unwrapped, and log-probabilities, [n, k] each."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return records["ids"].astype(np.int64), np.log(records["values"].astype(np.float64))


def _packages(source: Source) -> list[str]:
    """The files' names without what comes after the rank, by folder and rank.

    Raises CorpusUnreadable when one of a pair is missing.
    """
    keys = {name.removesuffix(KEYS) for name in source.files if name.endswith(KEYS)}
    values = {name.removesuffix(VALUES) for name in source.files if name.endswith(VALUES)}
    for package in keys ^ values:
        missing = package + (VALUES if package in keys else KEYS)
        raise CorpusUnreadable(f"{source.url} has no {missing} to what it has: copy it again, or wait for it")
    return sorted(keys, key=_order)


def _order(package: str) -> tuple[str, int, str]:
    folder, _, name = package.rpartition("/")
    rank = _RANK.fullmatch(name)
    return folder, int(rank[1]) if rank else -1, name


def _check_sizes(source: Source, package: str, k: int) -> None:
    """Raises CorpusUnreadable unless there is a record of k classes for each key."""
    keys = sum(1 for _ in _lines(source, package))
    size = source.files[package + VALUES].size
    wanted = keys * _record(k).itemsize
    if size != wanted:
        raise CorpusUnreadable(
            f"{source.where(package + VALUES)} has {size} bytes, and {keys} keys with {k} classes each would "
            f"take {wanted}: it is half-written, or k is another"
        )


def _lines(source: Source, package: str) -> Iterator[bytes]:
    """The lines of a file of keys, with their endings."""
    with source.open(package + KEYS) as file:
        yield from file


def _unit(source: Source, package: str, at: tuple[int, int], rows: tuple[int, int], item: int) -> Unit:
    parts = (source.slice(package + KEYS, *at), source.slice(package + VALUES, *rows))
    return Unit(parts, (rows[1] - rows[0]) * item)


@lru_cache(maxsize=1)
def _duplicates(source: Source, folder: str) -> dict[str, frozenset[int]]:
    """Rows of each package of an epoch whose key stands in a row before, or in a lower rank's file.

    Keys are compared by 8-byte digests: ImageNet-22k's 14 million take 0.1 GB.
    """
    packages = [package for package in _packages(source) if package.rpartition("/")[0] == folder]
    digests = array("Q")
    ends = []
    for package in packages:
        for line in _lines(source, package):
            digests.append(int.from_bytes(hashlib.blake2b(line.strip(), digest_size=8).digest()))
        ends.append(len(digests))
    seen = np.frombuffer(digests, dtype=np.uint64) if digests else np.zeros(0, dtype=np.uint64)
    first = np.zeros(len(seen), dtype=bool)
    first[np.unique(seen, return_index=True)[1]] = True
    again = np.flatnonzero(~first)
    starts = [0, *ends]
    return {
        package: frozenset((again[(again >= start) & (again < stop)] - start).tolist())
        for package, start, stop in zip(packages, starts, ends, strict=False)
    }
