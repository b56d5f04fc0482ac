"""Several teachers' stores of one corpus as one: their heads side by side, or each head averaged.

It knows rows by (key, view), and that only rows of equal inputs may meet. The destination has the units of
the first store, so it resumes like labelling: a unit that is committed is not merged again.

The average of sparse estimates. Let p̂_m be store m's estimate of p_m, E p̂_m = p_m. Their mean p̂, with all
entries of all stores, has E p̂ = mean p_m, but a codec's columns cannot hold it: draws of different stores are
worth different amounts. So p̂ is encoded again as any distribution is, with random numbers of its own: of the
result, E[· | p̂] = p̂, and hence E = mean p_m. It is unbiased, and varies more than a label of the ensemble
itself would: by the variance of p̂, about the M-th part of a single store's. Random numbers that the stores
used already would break the first equality; those of the destination follow from a seed of its own.

The average of top-k targets is refused: a class that one store has and another has not is known only to lie
below the other's least, so neither the mean's k likeliest nor their probabilities can be told.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.statistics import Means
from pipeline.targets.codecs import Codec, Dense
from pipeline.targets.codecs.base import Array, Encoded, NonFiniteLogits, concatenate, offsets_of, uniforms
from pipeline.targets.commit import Commit
from pipeline.targets.decoded import DenseTargets, SparseTargets, Targets
from pipeline.targets.errors import PlannedMeanwhile, SpecMismatch, UserError
from pipeline.targets.rows import Rows
from pipeline.targets.spec import Head, Spec
from pipeline.targets.store import Store
from pipeline.targets.unit import Quarantined

Mode = Literal["join", "average"]
Average = Literal["logits", "probabilities"]
Progress = Callable[[Commit], None]

ELEMENTS = 2**22
"""Probabilities that are averaged at a time, as a dense matrix."""

SHARDS = 4
"""Shards of a store that are kept in memory for rows that lie in other units."""


@dataclass(frozen=True)
class Merged:
    """What a run of `merge` did. refused: rows that went to quarantine; waiting: units that the first store
    has planned and not labelled yet.
    """

    store: Store
    units: int
    rows: int
    refused: int
    waiting: int


def merge(
    url: str,
    stores: Mapping[str, Store],
    mode: Mode,
    average: Average = "logits",
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Merged:
    """Merge stores, by name, into the one at `url`, which is made if it is not there.

    join: the heads of all, named "<store>_<head>". average: the first store's heads, each the mean over all
    stores of the distribution; of dense heads of the logits, or of the probabilities if `average` says so.
    Rows that are not in all stores, or not with the same inputs, go to quarantine ("no_partner",
    "inputs_differ").
    progress: called after each unit. Raises SpecMismatch for stores that cannot be merged so, CorruptShard,
    StorageError.
    """
    spec = _joined(stores) if mode == "join" else _averaged(stores, average)
    store = Store.create(url, spec, options)
    first, *others = stores.values()
    corpus = {"kind": "merged", "fingerprint": spec.teacher["fingerprint"]}
    while True:
        generation = store.generation()
        with contextlib.suppress(PlannedMeanwhile):
            store.write_plan(first.planned(), corpus, generation)
            break
    partners = dict(zip(list(stores)[1:], map(_Partner, others), strict=True))
    combine: Combine = _Join(stores) if mode == "join" else _Mean(spec, average)
    merger = _Merger(store, first, partners, combine)
    commits = {commit.unit: commit for commit in first.commits()}
    units = rows = refused = waiting = 0
    for unit in store.pending():
        labelled = commits.get(unit.id)
        if labelled is None:
            waiting += 1
            continue
        commit, lost = merger.unit(labelled)
        units, rows, refused = units + 1, rows + commit.rows, refused + lost
        if progress is not None:
            progress(commit)
    store.compact()
    return Merged(store, units, rows, refused, waiting)


# What the merged store declares


def _joined(stores: Mapping[str, Store]) -> Spec:
    heads = tuple(
        dataclasses.replace(head, name=f"{name}_{head.name}")
        for name, store in stores.items()
        for head in store.spec.heads
    )
    return _declare(stores, heads, {"mode": "join"}, next(iter(stores.values())).spec.seed)


def _averaged(stores: Mapping[str, Store], average: Average) -> Spec:
    (first_name, first), *others = stores.items()
    for head in first.spec.heads:
        for name, store in [(first_name, first), *others]:
            theirs = store.spec.head(head.name)
            if (theirs.size, theirs.positions) != (head.size, head.positions):
                raise SpecMismatch(
                    f"head {head.name} has {theirs.size} classes, {theirs.positions}, in {name} and "
                    f"{head.size}, {head.positions}, in {first_name}: only like heads can be averaged"
                )
            if not (isinstance(theirs.codec, Dense) or theirs.codec.draws):
                raise SpecMismatch(
                    f"head {head.name} of {name} is {theirs.codec.kind}, whose average cannot be told: what "
                    "one store keeps and another does not has no known probability there; join them, or "
                    "label with an ensemble teacher"
                )
            if isinstance(theirs.codec, Dense) != isinstance(head.codec, Dense):
                raise SpecMismatch(
                    f"head {head.name} is {theirs.codec.kind} in {name} and {head.codec.kind} in "
                    f"{first_name}: only targets of one form can be averaged"
                )
    fingerprints = json.dumps([store.spec.fingerprint for store in stores.values()])
    seed = int.from_bytes(hashlib.blake2b(fingerprints.encode(), digest_size=7).digest(), "little")
    return _declare(stores, first.spec.heads, {"mode": "average", "average": average}, seed)


def _declare(stores: Mapping[str, Store], heads: tuple[Head, ...], how: Mapping[str, str], seed: int) -> Spec:
    (first_name, first), *others = stores.items()
    ours = first.spec
    for name, store in others:
        theirs = store.spec
        if theirs.inputs != ours.inputs:
            raise SpecMismatch(f"{name} and {first_name} do not store the same inputs: they cannot be merged")
        if not ours.inputs and theirs.views != ours.views:
            raise SpecMismatch(
                f"{name} and {first_name} store no inputs, and their views differ: nothing says that their "
                "rows are of the same"
            )
        if (ours.vocabulary and ours.vocabulary.fingerprint) != (
            theirs.vocabulary and theirs.vocabulary.fingerprint
        ):
            raise SpecMismatch(f"{name} and {first_name} have different tokenizers: they cannot be merged")
    described = {
        "kind": "merged",
        **how,
        "members": {name: dict(store.spec.teacher) for name, store in stores.items()},
    }
    text = json.dumps(described, sort_keys=True)
    described["fingerprint"] = hashlib.sha256(text.encode()).hexdigest()
    vocabulary = ours.vocabulary
    if vocabulary is not None:
        widths = [s.spec.vocabulary.padded_size for s in stores.values() if s.spec.vocabulary is not None]
        vocabulary = dataclasses.replace(vocabulary, padded_size=min(widths))
    try:
        return Spec(
            inputs=ours.inputs,
            heads=heads,
            teacher=described,
            views=ours.views,
            seed=seed,
            vocabulary=vocabulary,
        )
    except ValueError as error:
        raise UserError(f"the merged store cannot be declared: {error}; give other names") from error


# Rows that meet

Combine = Callable[[Sequence[Rows]], tuple[dict[str, Encoded], dict[int, str]]]
"""Rows of each store, in one order, to encoded targets by head; and rows without any, with a sentence."""


class _Join:
    """Heads side by side, as they are stored."""

    def __init__(self, stores: Mapping[str, Store]) -> None:
        self._names = list(stores)

    def __call__(self, parts: Sequence[Rows]) -> tuple[dict[str, Encoded], dict[int, str]]:
        return {
            f"{name}_{head}": encoded
            for name, rows in zip(self._names, parts, strict=True)
            for head, encoded in rows.heads.items()
        }, {}


class _Mean:
    """Each head averaged and encoded by the first store's codec. average: of dense heads."""

    def __init__(self, spec: Spec, average: Average) -> None:
        self._spec, self._average = spec, average

    def __call__(self, parts: Sequence[Rows]) -> tuple[dict[str, Encoded], dict[int, str]]:
        """Encoded targets by head, and the rows whose mean is no distribution, each with a sentence."""
        heads: dict[str, Encoded] = {}
        bad: dict[int, str] = {}
        for head in self._spec.heads:
            counts = parts[0].counts(head)
            decoded = [rows.decode(head.name) for rows in parts]
            draws = np.concatenate(
                [
                    uniforms(self._spec.seed, head.name, key, view, count, head.codec.draws)
                    for key, view, count in zip(
                        parts[0].keys, parts[0].view.tolist(), counts.tolist(), strict=True
                    )
                ]
            )
            total, step = int(counts.sum()), max(1, ELEMENTS // head.size)
            encoded = []
            for start in range(0, total, step):
                chunk = slice(start, min(start + step, total))
                try:
                    encoded.append(_encode(head.codec, self._mean(decoded, chunk, head.size), draws[chunk]))
                except NonFiniteLogits as error:
                    rows = (
                        np.searchsorted(offsets_of(counts), start + np.flatnonzero(error.rows), "right") - 1
                    )
                    bad |= dict.fromkeys(rows.tolist(), f"the mean of the {head.name} is not finite")
            heads[head.name] = concatenate(encoded, head.codec.layout(head.size))
        return heads, bad

    def _mean(self, decoded: Sequence[Targets], chunk: slice, size: int) -> Array:
        """Logits of the mean, [n, V], float32."""
        total = np.zeros((chunk.stop - chunk.start, size))
        probabilities = self._average == "probabilities" or isinstance(decoded[0], SparseTargets)
        for targets in decoded:
            match targets:
                case DenseTargets(logits):
                    z = logits[chunk].astype(np.float64)
                    if probabilities:
                        z = np.exp(z - z.max(axis=1, keepdims=True))
                        z /= z.sum(axis=1, keepdims=True)
                    total += z
                case SparseTargets(ids, weights, offsets):
                    bounds = offsets[chunk.start : chunk.stop + 1]
                    entries = slice(bounds[0], bounds[-1])
                    owner = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
                    np.add.at(total, (owner, ids[entries]), weights[entries])
                case _:
                    raise TypeError(f"{type(targets).__name__} cannot be averaged")
        total /= len(decoded)
        if probabilities:
            with np.errstate(divide="ignore"):
                total = np.log(total)
        return total.astype(np.float32)


def _encode(codec: Codec, logits: Array, draws: Array) -> Encoded:
    import torch

    return codec.encode_torch(torch.from_numpy(logits), draws)


class _Merger:
    """Merges unit by unit."""

    def __init__(
        self, store: Store, first: Store, partners: Mapping[str, _Partner], combine: Combine
    ) -> None:
        self._store, self._first, self._partners, self._combine = store, first, partners, combine

    def unit(self, labelled: Commit) -> tuple[Commit, int]:
        """Merge one unit of the first store: its commit record, and how many rows were refused."""
        started, means, refused = time.time(), Means(), []
        with self._store.writer(labelled.unit) as writer:
            for rows in self._first.read(labelled):
                kept, lost = self._rows(labelled.unit, rows)
                refused += lost
                if kept is None:
                    continue
                writer.write(kept)
                for head in self._store.spec.heads:
                    measured = head.codec.statistics(kept.heads[head.name], head.size)
                    means.add(head.name, measured, float(kept.counts(head).sum()))
            known = [*self._first.quarantined(labelled), *refused]
            for item in sorted(known, key=lambda item: (item.row, item.view or 0)):
                writer.quarantine(item)
            commit = writer.commit(
                records=labelled.records,
                statistics=means.values(),
                histograms={},
                started=started,
                forward_seconds=0.0,
                device="",
            )
        return commit, len(refused)

    def _rows(self, unit: str, rows: Rows) -> tuple[Rows | None, list[Quarantined]]:
        """Those of some rows of the first store that have partners, merged; the others."""
        refused: dict[int, tuple[str, str]] = {}
        parts = [rows]
        for name, partner in self._partners.items():
            found = partner.find(unit, rows)
            for i in np.flatnonzero(found < 0).tolist():
                refused.setdefault(i, ("no_partner", f"{name} has no targets of it"))
            if (found >= 0).any():
                parts.append(partner.take(np.where(found >= 0, found, found.max())))
                for i in _unlike(rows, parts[-1]):
                    refused.setdefault(i, ("inputs_differ", f"its inputs in {name} are others"))
        kept = np.array([i for i in range(len(rows)) if i not in refused], dtype=np.int64)
        merged: Rows | None = None
        while len(kept):
            chosen = [part.take(kept) for part in parts]
            heads, bad = self._combine(chosen)
            if not bad:
                targets = np.max([part.targets for part in chosen], axis=0)
                merged = dataclasses.replace(chosen[0], spec=self._store.spec, heads=heads, targets=targets)
                break
            for i, reason in bad.items():
                refused[int(kept[i])] = ("non_finite", reason)
            kept = np.delete(kept, list(bad))
        return merged, [
            Quarantined(rows.keys[i], int(rows.row[i]), int(rows.view[i]), code, f"{rows.keys[i]}: {reason}")
            for i, (code, reason) in sorted(refused.items())
        ]


def _unlike(ours: Rows, theirs: Rows) -> Iterator[int]:
    """Rows whose inputs, or whose number of targets, are not the same in two stores."""
    for i in range(len(ours)):
        same = not (ours.targets[i] and theirs.targets[i]) or ours.targets[i] == theirs.targets[i]
        for name, array in ours.inputs.items():
            same = same and np.array_equal(array[i], theirs.inputs[name][i])
        if not same:
            yield i


class _Partner:
    """Another store's rows by (key, view): those of the same unit at once, others by an index of all of them.

    The index takes 16 bytes a row and one reading of the store. It is made when a row is first not in the
    unit of the same id, that is, if the other store was cut otherwise.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._commits = {
            commit.unit: dataclasses.replace(commit, statistics={}, histograms={})
            for commit in store.commits()
            if commit.rows
        }
        self._units = sorted(self._commits)
        self._shards: OrderedDict[str, Rows] = OrderedDict()
        self._index: tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]] | None = None
        self._found: list[tuple[str, int]] = []

    def find(self, unit: str, rows: Rows) -> npt.NDArray[np.int64]:
        """For each row a number for `take`, -1 where there is none; int64 [rows]."""
        names = list(zip(rows.keys, rows.view.tolist(), strict=True))
        here: dict[tuple[str, int], int] = {}
        if unit in self._commits:
            theirs = self._shard(unit)
            here = {name: i for i, name in enumerate(zip(theirs.keys, theirs.view.tolist(), strict=True))}
        self._found = []
        numbers = np.full(len(names), -1, dtype=np.int64)
        for i, name in enumerate(names):
            place = (unit, here[name]) if name in here else self._elsewhere(unit, *name)
            if place is not None:
                numbers[i] = len(self._found)
                self._found.append(place)
        return numbers

    def take(self, numbers: npt.NDArray[np.int64]) -> Rows:
        """The rows that the last `find` numbered so, in the order given."""
        places = [self._found[number] for number in numbers.tolist()]
        parts, order = [], []
        for unit in sorted({unit for unit, _ in places}):
            at = [i for i, place in enumerate(places) if place[0] == unit]
            parts.append(self._shard(unit).take(np.array([places[i][1] for i in at], dtype=np.int64)))
            order += at
        return Rows.concatenate(parts).take(np.argsort(np.array(order), kind="stable"))

    def _elsewhere(self, unit: str, key: str, view: int) -> tuple[str, int] | None:
        if self._index is None:
            self._index = self._indexed()
        hashes, places = self._index
        wanted = _name(key, view)
        at = int(np.searchsorted(hashes, wanted))
        while at < len(hashes) and hashes[at] == wanted:
            there, row = self._units[int(places[at]) >> 32], int(places[at]) & 0xFFFFFFFF
            rows = self._shard(there)
            if rows.keys[row] == key and int(rows.view[row]) == view:
                return there, row
            at += 1
        return None

    def _indexed(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
        hashes, places = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
        for number, unit in enumerate(self._units):
            names = [
                _name(key, view)
                for rows in self._store.read(self._commits[unit])
                for key, view in zip(rows.keys, rows.view.tolist(), strict=True)
            ]
            hashes.append(np.array(names, dtype=np.uint64))
            places.append((number << 32) + np.arange(len(names), dtype=np.int64))
        together = np.concatenate(hashes)
        order = np.argsort(together, kind="stable")
        return together[order], np.concatenate(places)[order]

    def _shard(self, unit: str) -> Rows:
        if unit in self._shards:
            self._shards.move_to_end(unit)
        else:
            self._shards[unit] = Rows.concatenate(list(self._store.read(self._commits[unit])))
            while len(self._shards) > SHARDS:
                self._shards.popitem(last=False)
        return self._shards[unit]


def _name(key: str, view: int) -> int:
    digest = hashlib.blake2b(f"{view} {key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
